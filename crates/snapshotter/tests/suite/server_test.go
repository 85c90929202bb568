// Package suite runs containerd's own test suite for snapshotters on Vellum.
//
// Each subtest gets its own server on a fresh store. The environment says what to start:
//
// 	VELLUM            the vellum program
// 	VELLUM_ARGUMENTS  arguments of every command, separated by spaces (--storage-driver,
// 	                  --engine, ...)
//
// The suite skips by name what overlayfs can't do, so the caller sets the name it runs under:
//
// 	VELLUM_NAME       overlayfs where the kernel's limits hold, else another name
package suite

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func name() string {
	if name := os.Getenv("VELLUM_NAME"); name != "" {
		return name
	}
	return "vellum"
}

// serve starts a server on the store at root. It returns its socket once it answers, and a function
// that ends it.
func serve(root string) (string, func() error, error) {
	// Socket paths must be short.
	run, err := os.MkdirTemp("", "vs")
	if err != nil {
		return "", nil, err
	}
	socket := filepath.Join(run, "s")
	log, err := os.Create(filepath.Join(run, "log"))
	if err != nil {
		return "", nil, err
	}
	defer log.Close()
	arguments := []string{"--root", filepath.Join(root, "v"), "--run-dir", filepath.Join(run, "r"), "--config", "/dev/null"}
	arguments = append(arguments, strings.Fields(os.Getenv("VELLUM_ARGUMENTS"))...)
	arguments = append(arguments, "serve", "containerd", "--socket", socket)
	server := exec.Command(os.Getenv("VELLUM"), arguments...)
	server.Stderr = log
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		// The signal comes when the thread that started it ends, so this thread stays.
		runtime.LockOSThread()
		err := server.Start()
		started <- err
		if err == nil {
			ended <- server.Wait()
		}
	}()
	if err := <-started; err != nil {
		return "", nil, err
	}
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		if err := server.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		err := <-ended
		said, _ := os.ReadFile(log.Name())
		os.RemoveAll(run)
		if err != nil {
			return fmt.Errorf("the server ended with %w:\n%s", err, said)
		}
		return nil
	}
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		connection, err := net.Dial("unix", socket)
		if err == nil {
			connection.Close()
			return socket, stop, nil
		}
		if time.Now().After(deadline) {
			server.Process.Kill()
			said, _ := os.ReadFile(log.Name())
			return "", nil, fmt.Errorf("the server does not answer: %w\n%s", err, said)
		}
	}
}
