// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen binds the daemon's socket, mode 0600, or 0660 for members of group, if it is not empty. A socket that nobody answers on is what a killed daemon left, and is
// replaced; one that somebody answers on is an error, and so is anything else at path, a symbolic link included: it
// is never followed.
func Listen(ctx context.Context, path, group string) (net.Listener, error) {
	var (
		access access
		err    error
		mode   fs.FileMode = 0o700 // of directories that are missing
	)
	if group != "" {
		if access, err = accessOf(group); err != nil {
			return nil, fmt.Errorf("socket_group: %w", err)
		}
		mode = 0o755
	}
	if err := os.MkdirAll(filepath.Dir(path), mode); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	listener, err := (&net.ListenConfig{Control: ownerOnly}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, cause(err))
	}
	if access.group {
		if err := errors.Join(os.Lchown(path, -1, access.gid), os.Chmod(path, 0o660)); err != nil {
			return nil, errors.Join(fmt.Errorf("socket %s: %w", path, err), listener.Close())
		}
	}
	return checked{listener, access}, nil
}

// ownerOnly sets the mode before the socket has a name: Linux creates the file with the mode of the socket's own
// inode (unix_bind), so there is no instant at which others can connect.
func ownerOnly(_, _ string, conn syscall.RawConn) error {
	var chmod error
	if err := conn.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) }); err != nil {
		return err
	}
	return chmod
}

func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return cause(err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is something else than a socket (remove it, or set another path in the key socket)")
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		conn.Close()
		return errors.New("in use: another daemon answers there (stop it, or set another path in the key socket)")
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	}
	return cause(err)
}

// cause drops what the standard library says of operation and path; the caller names both.
func cause(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
