// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"fmt"
	"time"
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
	return fmt.Sprintf("control plane %s: not connected: %v", e.Address, e.Cause)
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
