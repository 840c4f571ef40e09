// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// usageError is a mistake in the command line.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// errReported fails a command that has said why.
var errReported = errors.New("reported already")

// notRunningError says that nobody listens on the socket.
type notRunningError struct{ socket string }

func (e *notRunningError) Error() string {
	return fmt.Sprintf("netfenced is not running at %s (start it with `netfenced start`)", e.socket)
}

// message is what the user reads: a daemon's error is its text, not its transport's.
func message(err error) string {
	var rpc interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &rpc) {
		return err.Error()
	}
	st := rpc.GRPCStatus()
	if st.Code() == codes.Canceled {
		return "interrupted"
	}
	if st.Code() == codes.Unimplemented && strings.HasPrefix(st.Message(), "unknown ") {
		return "the daemon is older than this command: " + st.Message() + " (upgrade and restart it)"
	}
	return st.Message()
}

func oneLine(s string) string {
	return strings.ReplaceAll(strings.TrimSpace(s), "\n", "; ")
}
