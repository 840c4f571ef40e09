// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestPlain(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{errors.New("version 9 is not known"), "version 9 is not known"},
		{status.Error(codes.Unavailable, "error reading from server: EOF"), "error reading from server: EOF"},
		{
			status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:9000: connect: connection refused"`),
			"dial tcp 127.0.0.1:9000: connect: connection refused",
		},
		{
			status.Error(codes.Unavailable, `connection error: desc = "error reading server preface: remote error: tls: expired certificate"`),
			"remote error: tls: expired certificate (the control plane refuses this daemon's certificate; its log says why)",
		},
		{fmt.Errorf("receive: %w", status.Error(codes.Internal, "broken")), "receive: rpc error: code = Internal desc = broken"},
	} {
		if got := Plain(tt.err); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}
