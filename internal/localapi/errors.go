// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/wire"
)

// SubscribeReason says why an attachment got no first policy.
type SubscribeReason uint8

// The zero value is the one that a retry does not help against.
const (
	SubscribeRefused     SubscribeReason = iota // its policy was refused, or none can be decided
	SubscribeUnavailable                        // nobody to ask
	SubscribeTimeout                            // asked, and not acknowledged in time
)

// SubscribeError is how a Subscriber fails, apart from its context's errors.
type SubscribeError struct {
	Reason SubscribeReason
	Err    error
}

func (e *SubscribeError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *SubscribeError) Unwrap() error { return e.Err }

// callError is an error of this package's, with its code.
type callError struct {
	code codes.Code
	text string
}

func (e *callError) Error() string { return e.text }

func callErrorf(code codes.Code, format string, args ...any) error {
	return &callError{code: code, text: fmt.Sprintf(format, args...)}
}

// attachmentsLimit is the limit that another caller can use up, and that a detach makes room below.
const attachmentsLimit = "limits.attachments"

// toStatus is the only place that knows which error has which code.
func toStatus(err error) error {
	// A method that is not there yet is gRPC's own error. What a control plane's stream died of is one too, but wrapped,
	// and its code is not the answer to this call.
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	st := status.New(code(err), err.Error())
	var policy *policyError
	if errors.As(err, &policy) {
		st = withViolations(st, policy)
	}
	return st.Err()
}

// withViolations adds every reason to the first, which the text has.
func withViolations(st *status.Status, refused *policyError) *status.Status {
	var details []protoadapt.MessageV1
	for _, v := range wire.Violations(refused.field, refused.err) {
		details = append(details, v)
	}
	detailed, err := st.WithDetails(details...)
	if err != nil { // text that is not UTF-8
		return st
	}
	return detailed
}

func code(err error) codes.Code {
	var (
		call       *callError
		policy     *policyError
		subscribe  *SubscribeError
		notFound   *target.NotFoundError
		invalid    *target.InvalidError
		otherNetns *target.OtherNetnsError
		taken      *state.TakenError
		limit      *state.LimitError
		refused    *state.RefusedError
	)
	switch {
	case errors.As(err, &call):
		return call.code
	case errors.As(err, &policy):
		return codes.InvalidArgument
	case errors.As(err, &subscribe):
		return subscribe.code()
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.As(err, &notFound), errors.Is(err, state.ErrNotFound):
		return codes.NotFound
	case errors.As(err, &invalid):
		return codes.InvalidArgument
	case errors.As(err, &otherNetns):
		return codes.FailedPrecondition
	case errors.As(err, &taken):
		return codes.AlreadyExists
	case errors.As(err, &limit):
		if limit.Limit == attachmentsLimit {
			return codes.ResourceExhausted
		}
		return codes.InvalidArgument
	case errors.As(err, &refused):
		return codes.FailedPrecondition
	}
	return codes.Internal
}

func (e *SubscribeError) code() codes.Code {
	switch e.Reason {
	case SubscribeUnavailable:
		return codes.Unavailable
	case SubscribeTimeout:
		return codes.DeadlineExceeded
	default:
		return codes.FailedPrecondition
	}
}
