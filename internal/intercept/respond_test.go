// SPDX-License-Identifier: Apache-2.0

package intercept_test

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"net/netip"
	"sync"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/dnsproxy"
	"github.com/netfence/netfence/internal/intercept"
)

// answer is the responder's: what it knows of who asks.
type answer struct {
	Index  uint32
	Text   string // of the question
	Server netip.AddrPort
	// Cgroup: whom the socket meant is to be known, Original.
	Cgroup   bool
	Original netip.AddrPort
}

// respond answers what comes to the front with what is known of the peer; of whom a cgroup's socket meant if d is not nil.
func respond(f *intercept.Front, d *datapath.Datapath) (done *sync.WaitGroup) {
	done = &sync.WaitGroup{}
	for _, packets := range f.Packets {
		done.Go(func() {
			for {
				var answers []dnsproxy.Answer
				_, err := packets.ReadQueries(func(b []byte, peer dnsproxy.Peer) {
					answers = append(answers, dnsproxy.Answer{Bytes: reply(d, b, peer, false), To: peer})
				})
				if err != nil {
					return
				}
				_ = packets.WriteAnswers(answers) // lost, as packets are
			}
		})
	}
	for _, streams := range f.Streams {
		done.Go(func() {
			for {
				conn, peer, err := streams.Accept()
				if err != nil {
					return
				}
				done.Go(func() {
					defer conn.Close()
					size := make([]byte, 2)
					for {
						if _, err := io.ReadFull(conn, size); err != nil {
							return
						}
						b := make([]byte, binary.BigEndian.Uint16(size))
						if _, err := io.ReadFull(conn, b); err != nil {
							return
						}
						text := reply(d, b, peer, true)
						_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(text))), text...))
					}
				})
			}
		})
	}
	return done
}

func reply(d *datapath.Datapath, text []byte, peer dnsproxy.Peer, tcp bool) []byte {
	a := answer{Index: peer.Index, Text: string(text), Server: peer.Server}
	var err error
	var chain []datapath.Member
	if d != nil && peer.Origin != dnsproxy.Interface {
		chain = d.Chain(peer.Index)
	}
	if len(chain) > 0 {
		q := datapath.CgroupQuery{Member: chain[0], Client: peer.Client, Asked: peer.Server, TCP: tcp, Netns: datapath.OwnNetns}
		if peer.Origin == dnsproxy.OtherNetns {
			q.Netns = peer.Netns
		}
		a.Cgroup = true
		if a.Original, err = d.Original(q); err != nil {
			panic(err)
		}
	}
	b, err := json.Marshal(a)
	if err != nil {
		panic(err)
	}
	return b
}
