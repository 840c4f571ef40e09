// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"log/slog"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/config"
	"github.com/netfence/netfence/internal/controlclient"
	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/folder"
	"github.com/netfence/netfence/internal/localapi"
	"github.com/netfence/netfence/policy"
)

// maxCommandBytes is the largest command that the daemon takes, from whichever control plane.
const maxCommandBytes = 16 << 20

// controlPlane is the client, and the folder that it talks to when the control plane is embedded.
type controlPlane struct {
	client *controlclient.Client
	folder *folder.Folder // nil: the control plane is remote
}

func newControlPlane(c *config.Config, opts controlclient.Options, kernel *datapath.Datapath, log *slog.Logger) (*controlPlane, error) {
	p := &controlPlane{}
	if dir := c.ControlPlane.URL.Dir; dir != "" {
		var err error
		p.folder, err = folder.Open(folder.Options{
			Dir: dir, Default: c.DefaultPolicy, Limits: policy.Limits{Rules: c.Limits.Rules}, Guard: c.Guard,
			MaxCommandBytes: maxCommandBytes, Log: log,
		})
		if err != nil {
			return nil, err
		}
		opts.Ready = p.folder.Ready
		opts.Dial = func(ctx context.Context, _ string) (controlclient.Conn, error) { return p.folder.Dial(ctx) }
		opts.Addresses = []string{c.ControlPlane.URL.String()}
	} else {
		opts.Dial, opts.Addresses = dialer(c.ControlPlane, kernel).Dial, c.ControlPlane.URL.Addresses
	}
	opts.Heartbeat = c.ControlPlane.Heartbeat
	opts.Metadata = c.Metadata
	opts.AckTimeout = c.ControlPlane.SubscribeAckTimeout
	opts.MaxCommandBytes = maxCommandBytes
	opts.Log = log
	opts.WhenUnreachable = unreachable[c.ControlPlane.AttachWhenUnreachable]
	var err error
	p.client, err = controlclient.New(opts)
	return p, err
}

var unreachable = map[config.Unreachable]controlclient.Unreachable{
	config.UnreachableFail: controlclient.UnreachableFail, config.UnreachablePending: controlclient.UnreachablePending,
	config.UnreachableCached: controlclient.UnreachableCached,
}

// Subscribe is the client's, its errors in the words of the local API.
func (p *controlPlane) Subscribe(ctx context.Context, id string) error {
	err := p.client.Subscribe(ctx, id)
	var (
		unavailable *controlclient.UnavailableError
		timeout     *controlclient.TimeoutError
		refused     *controlclient.RefusedError
	)
	switch {
	case errors.As(err, &unavailable):
		return &localapi.SubscribeError{Reason: localapi.SubscribeUnavailable, Err: err}
	case errors.As(err, &timeout):
		return &localapi.SubscribeError{Reason: localapi.SubscribeTimeout, Err: err}
	case errors.As(err, &refused):
		return &localapi.SubscribeError{Reason: localapi.SubscribeRefused, Err: err}
	}
	return err
}

// Announce is the client's.
func (p *controlPlane) Announce(id string) { p.client.Announce(id) }

// stateNames are those of the metrics.
var stateNames = map[controlclient.State]string{
	controlclient.Disconnected: "disconnected", controlclient.Connecting: "connecting", controlclient.Connected: "connected",
}

var connectionStates = map[controlclient.State]netfencev1.ConnectionState{
	controlclient.Disconnected: netfencev1.ConnectionState_CONNECTION_STATE_DISCONNECTED,
	controlclient.Connecting:   netfencev1.ConnectionState_CONNECTION_STATE_CONNECTING,
	controlclient.Connected:    netfencev1.ConnectionState_CONNECTION_STATE_CONNECTED,
}

// report adds what the control plane has to say to a status.
func (p *controlPlane) report(s *localapi.Status) {
	link := p.client.Status()
	s.ControlPlaneState = connectionStates[link.State]
	s.ControlPlaneAddress = link.Address
	if link.Err != nil {
		s.Problems = append(s.Problems, "control plane "+link.Address+": "+controlclient.Plain(link.Err))
	}
	if p.folder == nil {
		return
	}
	for _, err := range p.folder.Errors() {
		s.Problems = append(s.Problems, err.Error())
	}
}
