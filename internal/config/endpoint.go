// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// Endpoint is a control plane: a folder of policy files, or the address of a server. Exactly one field is set.
type Endpoint struct {
	// Dir is a cleaned absolute path.
	Dir string
	// Address is host:port.
	Address string
}

// String is the endpoint as the operator writes it.
func (e Endpoint) String() string {
	if e.Dir != "" {
		return "dir://" + e.Dir
	}
	return e.Address
}

// Loopback tells whether the server is on this host, judged without resolving a name: what a resolver answers today
// must not decide whether policies travel in plaintext.
func (e Endpoint) Loopback() bool {
	host, _, err := net.SplitHostPort(e.Address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

func parseEndpoint(s string) (Endpoint, error) {
	if dir, ok := strings.CutPrefix(s, "dir://"); ok {
		if !filepath.IsAbs(dir) {
			return Endpoint{}, fmt.Errorf("%q is not an absolute folder (write dir:///etc/netfence/policies)", s)
		}
		return Endpoint{Dir: filepath.Clean(dir)}, nil
	}
	if s == "" {
		return Endpoint{}, errors.New("empty (write host:port or dir:///path)")
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || strings.Contains(s, "/") {
		return Endpoint{}, fmt.Errorf("%q is neither host:port nor dir:///path", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return Endpoint{}, fmt.Errorf("%q has no port between 1 and 65535", s)
	}
	return Endpoint{Address: s}, nil
}
