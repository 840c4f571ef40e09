// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// As calls f on a thread with the file access of user, and no more: what root does in a user's directory is led
// astray by the user's symbolic links.
func As(user User, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		result <- assume(user, f)
	}()
	return <-result
}

// assume changes the calling thread for good.
func assume(user User, f func() error) error {
	groups := make([]int, len(user.Groups))
	for i, g := range user.Groups {
		groups[i] = int(g)
	}
	if err := unix.Setgroups(groups); err != nil { // this thread's alone, unlike syscall.Setgroups
		return fmt.Errorf("groups: %w", err)
	}
	if _, err := unix.SetfsgidRetGid(int(user.GID)); err != nil {
		return fmt.Errorf("fsgid: %w", err)
	}
	// Leaving uid 0 takes the capabilities that override file permissions with it (capabilities(7)).
	if _, err := unix.SetfsuidRetUid(int(user.UID)); err != nil {
		return fmt.Errorf("fsuid: %w", err)
	}
	if now, err := unix.SetfsuidRetUid(int(user.UID)); err != nil || now != int(user.UID) {
		return fmt.Errorf("fsuid is %d, not %d", now, user.UID)
	}
	return f()
}

// lookUp finds a command as execvp(3) would as user.
func lookUp(name string, env []string, user User) (path string, err error) {
	err = As(user, func() error {
		path, err = search(name, env)
		return err
	})
	return path, err
}

func search(name string, env []string) (string, error) {
	if name == "" {
		return "", &Error{CodeNotFound, "the command's name is empty"}
	}
	if strings.Contains(name, "/") {
		if err := executable(name); err != nil {
			return "", notRun(name, err)
		}
		return name, nil
	}
	path := "/usr/local/bin:/usr/bin:/bin"
	for _, pair := range env {
		if value, ok := strings.CutPrefix(pair, "PATH="); ok {
			path = value
		}
	}
	failure := error(unix.ENOENT)
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		file := dir + "/" + name
		err := executable(file)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			failure = err
		}
	}
	return "", notRun(name, failure)
}

func executable(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	if st.Mode&0o111 == 0 { // as execve(2) has it for root as well
		return unix.EACCES
	}
	return unix.Faccessat2(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS)
}

func notRun(name string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		return &Error{CodeNotFound, name + ": command not found"}
	default:
		return &Error{CodeNotExecutable, fmt.Sprintf("%s: %v", name, err)}
	}
}

// workingDirectory is the path of the directory that we are in, "/" if it has none.
func workingDirectory() string {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Getcwd(buf)
	if err != nil || n < 2 || buf[0] != '/' { // "(unreachable)", getcwd(2)
		return "/"
	}
	return string(buf[:n-1])
}

// enter goes where path leads now: the directory that it led to before may be one that a mount has hidden since.
func enter(path string, user User) error {
	err := As(user, func() error { return os.Chdir(path) })
	if err != nil {
		err = os.Chdir(path) // one that the user is in without the right to go there
	}
	if err != nil {
		err = os.Chdir("/")
	}
	if err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	return nil
}
