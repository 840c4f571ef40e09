// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Each failure is followed by the next address, and status tells which it is.
func TestAddressesInTurn(t *testing.T) {
	var dials chan string
	bubble(t, func(h *harness) {
		var got []string
		for range 4 {
			got = append(got, <-dials)
			synctest.Wait()
			if h.client.Status().Address != got[len(got)-1] {
				t.Errorf("status has %s, dialled was %s", h.client.Status().Address, got[len(got)-1])
			}
		}
		if want := []string{"a:1", "b:1", "c:1", "a:1"}; !slices.Equal(got, want) {
			t.Errorf("dialled %v, want %v", got, want)
		}
		h.stop()
	}, func(o *Options) {
		dials = make(chan string)
		o.Addresses = []string{"a:1", "b:1", "c:1"}
		o.Dial = func(ctx context.Context, address string) (Conn, error) {
			select {
			case dials <- address:
			case <-ctx.Done():
			}
			return nil, errors.New("no route to host")
		}
	})
}

func TestStreamsInTurn(t *testing.T) {
	var dialled []string
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		s.end <- status.Error(codes.Unavailable, "restart")
		s, _ = h.connect()
		<-time.After(time.Hour) // fake: one that stands is not left
		s.end <- status.Error(codes.Unavailable, "restart")
		h.connect()
		if want := []string{"a:1", "b:1", "a:1"}; !slices.Equal(dialled, want) {
			t.Errorf("dialled %v, want %v", dialled, want)
		}
	}, func(o *Options) {
		o.Addresses = []string{"a:1", "b:1"}
		dial := o.Dial
		o.Dial = func(ctx context.Context, address string) (Conn, error) {
			dialled = append(dialled, address)
			return dial(ctx, address)
		}
	})
}

// A token is read for each call, and a file that has none is an error that says so.
func TestTokenFile(t *testing.T) {
	path := t.TempDir() + "/token"
	for _, tt := range []struct{ content, header, err string }{
		{"", "", "empty"}, {"\n", "", "empty"}, {"secret\n", "Bearer secret", ""}, {"another", "Bearer another", ""},
		{"two words", "", "not one word of ASCII"}, {"sécret", "", "not one word of ASCII"},
		{strings.Repeat("a", maxTokenBytes+1), "", "larger than 16384 bytes"},
	} {
		if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := tokenFile(path).GetRequestMetadata(t.Context())
		if got["authorization"] != tt.header || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), path+": "+tt.err) {
			t.Errorf("%.20q: %v, %v", tt.content, got, err)
		}
	}
	if _, err := tokenFile(path + ".none").GetRequestMetadata(t.Context()); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Error(err)
	}
}
