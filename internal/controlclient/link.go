// SPDX-License-Identifier: Apache-2.0

package controlclient

// State of the connection to the control plane.
type State uint8

// Disconnected is between two dials. Connected begins with the first message from the control plane,
// not with the connection: a server that refuses the stream was never connected to.
const (
	Disconnected State = iota
	Connecting
	Connected
)

func (s State) String() string {
	switch s {
	case Connecting:
		return "connecting"
	case Connected:
		return "connected"
	default:
		return "disconnected"
	}
}

// link is the connection as others see it. A changed link is a new value; changed is closed on the old.
type link struct {
	state   State
	address string // that is dialled, or was last
	err     error  // what ended the last stream; kept until the next one is Connected
	ups     uint64 // times that Connected was reached
	changed chan struct{}
}

// Status is shown by the local API.
type Status struct {
	State   State
	Address string
	Err     error // what ended the last stream, or the last dial; nil while connected
}

// Status of the connection now.
func (c *Client) Status() Status {
	l := c.currentLink()
	return Status{State: l.state, Address: l.address, Err: l.err}
}

// Changed returns a channel that is closed when the state changes: take it, then ask for Status, then wait.
func (c *Client) Changed() <-chan struct{} { return c.currentLink().changed }

func (c *Client) currentLink() link {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link
}

// dialling moves to Connecting, with address.
func (c *Client) dialling(address string) {
	c.mu.Lock()
	c.link.address = address
	c.mu.Unlock()
	c.setLink(Connecting, nil)
}

// setLink moves to state. A nil err keeps the last one, except that Connected forgets it.
func (c *Client) setLink(state State, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if state == Connected && c.link.state == Connected {
		return
	}
	next := link{state: state, address: c.link.address, err: err, ups: c.link.ups, changed: make(chan struct{})}
	switch {
	case state == Connected:
		next.ups++
	case err == nil:
		next.err = c.link.err
	}
	close(c.link.changed)
	c.link = next
}
