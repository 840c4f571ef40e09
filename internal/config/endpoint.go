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

// Endpoint is a control plane: a folder of policy files, or the addresses of a server. Exactly one field is set.
type Endpoint struct {
	// Dir is a cleaned absolute path.
	Dir string
	// Addresses are host:port, to be tried in turn.
	Addresses []string
}

// String is the endpoint as the operator writes it.
func (e Endpoint) String() string {
	if e.Dir != "" {
		return "dir://" + e.Dir
	}
	return strings.Join(e.Addresses, ",")
}

// Loopback tells whether every server is on this host, judged without resolving a name: what a resolver answers today
// must not decide whether policies travel in plaintext.
func (e Endpoint) Loopback() bool {
	for _, address := range e.Addresses {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return false
		}
		addr, err := netip.ParseAddr(host)
		if host != "localhost" && (err != nil || !addr.Unmap().IsLoopback()) {
			return false
		}
	}
	return true
}

func parseEndpoint(list []string) (Endpoint, error) {
	if len(list) != 1 {
		var e Endpoint
		for _, s := range list {
			address, err := parseAddress(s)
			if err != nil {
				return Endpoint{}, err
			}
			e.Addresses = append(e.Addresses, address)
		}
		return e, nil
	}
	s := list[0]
	if dir, ok := strings.CutPrefix(s, "dir://"); ok {
		if !filepath.IsAbs(dir) {
			return Endpoint{}, fmt.Errorf("%q is not an absolute folder (write dir:///etc/netfence/policies)", s)
		}
		return Endpoint{Dir: filepath.Clean(dir)}, nil
	}
	if s == "" {
		return Endpoint{}, errors.New("empty (write host:port or dir:///path)")
	}
	address, err := parseAddress(s)
	if err != nil {
		return Endpoint{}, err
	}
	return Endpoint{Addresses: []string{address}}, nil
}

func parseAddress(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || strings.Contains(s, "/") {
		return "", fmt.Errorf("%q is neither host:port nor dir:///path", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("%q has no port between 1 and 65535", s)
	}
	return s, nil
}
