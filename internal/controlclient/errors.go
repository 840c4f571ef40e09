// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/status"
)

// UnavailableError says that there is no control plane to ask. Cause is what ended the last stream
// or the last dial; nil when none was tried yet.
type UnavailableError struct {
	Address string
	Cause   error
}

func (e *UnavailableError) Error() string {
	if e.Cause == nil {
		return fmt.Sprintf("control plane %s: not connected", e.Address)
	}
	return fmt.Sprintf("control plane %s: not connected: %s (control_plane.attach_when_unreachable: pending would attach closed)",
		e.Address, Plain(e.Cause))
}

// Plain takes off what gRPC puts around the text of its errors and of a dialler's.
func Plain(err error) string {
	st, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	text := st.Message()
	if _, cause, dialled := strings.Cut(text, "transport: Error while dialing: "); dialled {
		text = strings.TrimSuffix(cause, `"`)
	}
	if i := strings.Index(text, "remote error: tls: "); i >= 0 {
		text = strings.TrimSuffix(text[i:], `"`) + " (the control plane refuses this daemon's certificate; its log says why)"
	}
	return text
}

// Unwrap gives the cause, so that callers see a cancelled context as one.
func (e *UnavailableError) Unwrap() error { return e.Cause }

// TimeoutError says that no acknowledgement was received and in force within the timeout.
type TimeoutError struct {
	Address string
	After   time.Duration
}

func (e *TimeoutError) Error() string {
	return fmt.Sprintf("control plane %s: no acknowledgement in force within %v (control_plane.subscribe_ack_timeout)",
		e.Address, e.After)
}

// RefusedError says that the attachment cannot be what the control plane wants it to be: its
// acknowledgement was refused, or no policy can be decided for it.
type RefusedError struct {
	Cause error
}

func (e *RefusedError) Error() string { return e.Cause.Error() }

// Unwrap gives the reason.
func (e *RefusedError) Unwrap() error { return e.Cause }
