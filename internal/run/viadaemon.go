// SPDX-License-Identifier: Apache-2.0

package run

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/events"
	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

const (
	// detachTimeout is for a daemon that hangs. The end of the cgroup ends the attachment as well.
	detachTimeout = 10 * time.Second
	// lastWords is how long events of drops that the kernel has counted may take to arrive. What was lost is told
	// once a second.
	lastWords = 1500 * time.Millisecond
	// maxResponseBytes bounds what the daemon may answer.
	maxResponseBytes = 64 << 20
)

// viaDaemon is a fence that the daemon holds.
type viaDaemon struct {
	conn   *grpc.ClientConn
	daemon netfencev1.DaemonServiceClient
	socket string
	key    string
	tally  *tally

	id       string // the attachment's, once there is one
	cancel   context.CancelFunc
	watching bool
	watched  chan struct{} // closed at the end of the events; then unheard is why
	unheard  error
	more     chan struct{}
}

// dialDaemon returns nil if no daemon answers on the socket.
func dialDaemon(socket, id string, t *tally) (*viaDaemon, error) {
	probe, err := net.Dial("unix", socket)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("daemon's socket %s: %w", socket, err)
	}
	probe.Close()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		// A large policy comes back with the counters, and what was learned.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponseBytes)))
	if err != nil {
		return nil, fmt.Errorf("daemon's socket %s: %w", socket, err)
	}
	return &viaDaemon{
		conn: conn, daemon: netfencev1.NewDaemonServiceClient(conn), socket: socket, key: pinsName(id), tally: t,
		watched: make(chan struct{}), more: make(chan struct{}, 1),
	}, nil
}

func (d *viaDaemon) pins() string { return "" }

func (d *viaDaemon) prepare() {}

func (d *viaDaemon) enforce(ctx context.Context, path string, p *policy.Policy) error {
	update, err := wire.BulkUpdate(p, wire.Self())
	if err != nil {
		return err
	}
	attached, err := d.daemon.Attach(ctx, &netfencev1.AttachRequest{
		Target: &netfencev1.AttachRequest_CgroupPath{CgroupPath: path}, Key: d.key, Policy: update,
	})
	if err != nil {
		return err
	}
	d.id = attached.GetId()
	var watching context.Context
	watching, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	stream, err := d.daemon.Watch(watching, &netfencev1.WatchRequest{Ids: []string{d.id}})
	if err == nil {
		_, err = stream.Recv() // what happens after the first batch is told
	}
	if err != nil {
		return err
	}
	d.watching = true
	go d.watch(stream)
	return nil
}

func (d *viaDaemon) watch(stream grpc.ServerStreamingClient[netfencev1.EventBatch]) {
	defer close(d.watched)
	for {
		batch, err := stream.Recv()
		if err != nil {
			d.unheard = err
			return
		}
		for _, e := range batch.GetEvents() {
			d.tally.add(eventFrom(e))
		}
		d.tally.add(events.Event{Lost: batch.GetLost()})
		select {
		case d.more <- struct{}{}:
		default:
		}
	}
}

func (d *viaDaemon) close() (err error) {
	defer func() { err = errors.Join(err, d.conn.Close()) }()
	defer d.unwatch()
	ctx, cancel := context.WithTimeout(context.Background(), detachTimeout)
	defer cancel()
	told := d.hearOut(ctx)
	_, err = d.daemon.Detach(ctx, &netfencev1.DetachRequest{Key: d.key, MissingOk: true})
	if status.Code(err) == codes.Unavailable {
		err = fmt.Errorf("the daemon at %s is gone: what was denied since then is not known", d.socket)
	}
	return errors.Join(err, told)
}

// hearOut waits for the events of what the kernel has counted.
func (d *viaDaemon) hearOut(ctx context.Context) error {
	if !d.watching {
		return nil
	}
	got, err := d.daemon.Get(ctx, &netfencev1.GetRequest{Id: d.id})
	if status.Code(err) == codes.Unavailable {
		return nil // Detach says so
	}
	if err != nil {
		return fmt.Errorf("what the daemon counted: %w", err)
	}
	var counted uint64
	for _, counts := range []map[string]uint64{got.GetDrops(), got.GetAttachment().GetWouldDeny()} {
		for _, n := range counts {
			counted += n
		}
	}
	limit := time.NewTimer(lastWords)
	defer limit.Stop()
	for {
		seen := d.tally.seen()
		if seen >= counted {
			return nil
		}
		select {
		case <-d.more:
		case <-d.watched:
			return fmt.Errorf("events of the daemon: %w", d.unheard)
		case <-limit.C:
			d.tally.add(events.Event{Lost: counted - seen})
			return nil
		}
	}
}

// unwatch ends the events.
func (d *viaDaemon) unwatch() {
	if d.cancel == nil {
		return
	}
	d.cancel()
	if d.watching {
		<-d.watched
	}
}

// eventFrom reads what Watch sends. What does not parse stays zero.
func eventFrom(m *netfencev1.Event) events.Event {
	e := events.Event{Time: m.GetTime().AsTime(), Attachment: m.GetId()}
	if f := m.GetDeniedFlow(); f != nil {
		addr, _ := netip.ParseAddr(f.GetAddress())
		e.Flow = &events.DeniedFlow{
			Destination: netip.AddrPortFrom(addr, uint16(f.GetPort())), Protocol: uint8(f.GetIpProtocol()),
			Length: int(f.GetLength()), Reason: f.GetReason(), Names: f.GetNames(),
			Rule: f.GetRule(), WouldDeny: f.GetAudit(),
		}
	}
	if d := m.GetDnsDecision(); d != nil {
		e.Decision = &events.DNSDecision{Name: d.GetDomain(), Type: d.GetQueryType(), Allowed: d.GetAllowed(), Reason: d.GetReason(), WouldDeny: d.GetAudit()}
		for _, text := range d.GetLearned() {
			if addr, err := netip.ParseAddr(text); err == nil {
				e.Decision.Learned = append(e.Decision.Learned, addr)
			}
		}
	}
	return e
}
