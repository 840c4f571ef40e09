// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"fmt"
	"net"

	"github.com/netfence/netfence/internal/dnsproxy"
)

// streams is a TCP socket for every address.
type streams struct {
	listener *net.TCPListener
	where    *place
}

// Accept hangs up on who is no attachment.
func (s *streams) Accept() (net.Conn, dnsproxy.Peer, error) {
	for {
		conn, err := s.listener.AcceptTCP()
		if err != nil {
			return nil, dnsproxy.Peer{}, fmt.Errorf("accept DNS connection: %w", err)
		}
		client, clientOK := conn.RemoteAddr().(*net.TCPAddr)
		server, serverOK := conn.LocalAddr().(*net.TCPAddr)
		if clientOK && serverOK {
			if peer, ok := s.where.peer(client.AddrPort(), server.AddrPort()); ok {
				return conn, peer, nil
			}
		}
		_ = conn.Close()
	}
}

// Close makes Accept return net.ErrClosed.
func (s *streams) Close() error { return s.listener.Close() }
