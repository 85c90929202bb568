# Vellum's common commands. Each target first installs what it needs
# (missing Debian packages, the Rust toolchain); `make help` lists them.

CARGO  ?= cargo
PREFIX ?= /usr/local
# Where systemd looks for units; /usr/local/lib/systemd/system is one such place.
UNITDIR ?= $(PREFIX)/lib/systemd/system
TARGET := $(or $(CARGO_TARGET_DIR),target)
# An archive (docker-archive, OCI layout) or a registry reference for `make demo`.
IMAGE  ?=
# Rows of the benchmark to run, for example BENCH="load diff"; empty: all.
BENCH  ?=

.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-slow bench lint install clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  make demo IMAGE=debian.tar          the demo with an archive of yours'
	@echo '  make bench BENCH="load mount"       some rows of the benchmark'

setup: ## Install what builds and tests need (asks for nothing)
	@scripts/setup.sh build test

build: ## Build the vellum command (release)
	@scripts/setup.sh build
	$(CARGO) build --release --locked --package vellum-cli

demo: ## A real image in, a container out, a new image back: end to end
	@scripts/setup.sh build demo
	@$(CARGO) build --release --locked --package vellum-cli
	@VELLUM=$(TARGET)/release/vellum demo/run.sh $(IMAGE)

test: ## Format, clippy, documents and every test
	@scripts/setup.sh build test
	@scripts/test.sh

test-slow: ## The tests of `make test`, and those with newer clients and large inputs
	@scripts/setup.sh build test slow
	@VELLUM_SLOW=1 scripts/test.sh

bench: ## Compare with dockerd, podman, skopeo, umoci and tar; writes bench/RESULTS.md
	@scripts/setup.sh build test bench
	@$(CARGO) build --release --locked --package vellum-cli
	@bench/bench.py --vellum $(TARGET)/release/vellum $(BENCH)

lint: ## Format, clippy and documents only
	@scripts/setup.sh build
	@scripts/test.sh fmt clippy docs

install: build ## Install the command, man pages, completions and systemd units under PREFIX
	install -D -m 0755 $(TARGET)/release/vellum $(DESTDIR)$(PREFIX)/bin/vellum
	install -d $(DESTDIR)$(PREFIX)/sbin
	ln -sf ../bin/vellum $(DESTDIR)$(PREFIX)/sbin/mount.fuse.vellum
	$(TARGET)/release/vellum man $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions
	$(TARGET)/release/vellum completions bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/vellum
	$(TARGET)/release/vellum completions zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_vellum
	install -d $(DESTDIR)$(UNITDIR)
	for unit in contrib/systemd/*; do \
	  sed 's|/usr/local/bin/vellum|$(PREFIX)/bin/vellum|' "$$unit" >$(DESTDIR)$(UNITDIR)/$${unit##*/} || exit; \
	done
	install -d $(DESTDIR)$(PREFIX)/share/vellum
	cp -r contrib/containerd contrib/containers contrib/docker contrib/kubernetes contrib/prometheus $(DESTDIR)$(PREFIX)/share/vellum

clean: ## Remove what was built (the cached demo image too)
	$(CARGO) clean
	rm -rf .cache
