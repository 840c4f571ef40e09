// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// newNamespace makes a network namespace, which lives as long as the file, or a
// socket that was opened in it.
func newNamespace() (ns *os.File, err error) {
	inThread(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("new network namespace: %w (needs CAP_SYS_ADMIN)", err)
			return
		}
		ns, err = os.Open("/proc/thread-self/ns/net")
	})
	return ns, err
}

// inNamespace calls f in ns. Sockets that f opens belong there.
func inNamespace(ns *os.File, f func() error) (err error) {
	inThread(func() {
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = f()
	})
	return err
}

// inThread calls f on a thread that nothing else runs on, before or after: a
// goroutine that ends locked takes its thread along. The first thread would stay,
// and is what others take for the process when they ask for its namespace.
func inThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			inThread(f) // on another, while this one is held
			return
		}
		f()
	}()
	<-done
}
