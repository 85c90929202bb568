# Vellum's common commands. Each target first installs what it needs
# (missing Debian packages, the Rust toolchain); `make help` lists them.

CARGO  ?= cargo
PREFIX ?= /usr/local
# Where systemd looks for units; /usr/local/lib/systemd/system is one such place.
UNITDIR ?= $(PREFIX)/lib/systemd/system
TARGET := $(or $(CARGO_TARGET_DIR),target)
BUILT  ?= $(TARGET)/release/vellum
COMPLETIONS := bash-completion/completions/vellum zsh/site-functions/_vellum fish/vendor_completions.d/vellum.fish
UNITS       := $(notdir $(wildcard contrib/systemd/*))
EXAMPLES    := containerd containers docker kubernetes prometheus
# An archive (docker-archive, OCI layout) or a registry reference for `make demo`.
IMAGE  ?=
# An image that is not a file is pulled, and only then a registry client is built.
DEMO_FEATURES := $(if $(IMAGE),$(if $(wildcard $(IMAGE)),,--features registry))
# Rows of the benchmark to run, for example BENCH="load diff"; empty: all.
BENCH  ?=

.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-slow bench lint pictures install install-files uninstall deb clean

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
	@test -e $(TARGET)/demo/vellum || echo 'demo: building the vellum command, without servers: about two minutes on two cores, once'
	@$(CARGO) build --profile demo --locked --package vellum-cli --no-default-features $(DEMO_FEATURES)
	@VELLUM=$(TARGET)/demo/vellum demo/run.sh $(IMAGE)

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
	@scripts/setup.sh build docs
	@scripts/test.sh fmt clippy docs

pictures: ## Draw docs/pictures again: overview, bench, and a recording of the demo
	@scripts/setup.sh build demo
	$(CARGO) build --release --locked --package vellum-cli
	@VELLUM=$(TARGET)/release/vellum scripts/pictures.py overview bench demo

install: build install-files ## Install the command, man pages, completions and systemd units under PREFIX

# What `make install` and the Debian package have in common: the files, from what BUILT names.
install-files:
	install -D -m 0755 $(BUILT) $(DESTDIR)$(PREFIX)/bin/vellum
	install -d $(DESTDIR)$(PREFIX)/sbin
	ln -sf ../bin/vellum $(DESTDIR)$(PREFIX)/sbin/mount.fuse.vellum
	$(BUILT) man $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(addprefix $(DESTDIR)$(PREFIX)/share/,$(dir $(COMPLETIONS)))
	$(BUILT) completions bash >$(DESTDIR)$(PREFIX)/share/$(word 1,$(COMPLETIONS))
	$(BUILT) completions zsh >$(DESTDIR)$(PREFIX)/share/$(word 2,$(COMPLETIONS))
	$(BUILT) completions fish >$(DESTDIR)$(PREFIX)/share/$(word 3,$(COMPLETIONS))
	install -d $(DESTDIR)$(UNITDIR)
	for unit in $(UNITS); do \
	  sed 's|/usr/local/bin/vellum|$(PREFIX)/bin/vellum|' contrib/systemd/$$unit >$(DESTDIR)$(UNITDIR)/$$unit || exit; \
	done
	install -d $(DESTDIR)$(PREFIX)/share/vellum
	cp -r $(addprefix contrib/,$(EXAMPLES)) $(DESTDIR)$(PREFIX)/share/vellum

uninstall: ## Remove what `make install` put under PREFIX; the store stays
	rm -f $(DESTDIR)$(PREFIX)/bin/vellum $(DESTDIR)$(PREFIX)/sbin/mount.fuse.vellum
	rm -f $(DESTDIR)$(PREFIX)/share/man/man1/vellum.1 $(DESTDIR)$(PREFIX)/share/man/man1/vellum-*.1
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/share/,$(COMPLETIONS))
	rm -f $(addprefix $(DESTDIR)$(UNITDIR)/,$(UNITS))
	rm -rf $(DESTDIR)$(PREFIX)/share/vellum

deb: ## Build two Debian packages: vellum, and the mount program alone
	@scripts/setup.sh build deb
	$(CARGO) build --release --locked --package vellum-cli
	$(CARGO) build --release --locked --package vellum-overlay
	scripts/deb.sh $(TARGET)/release $(TARGET)/deb

clean: ## Remove what was built (the cached demo image too)
	$(CARGO) clean
	rm -rf .cache
