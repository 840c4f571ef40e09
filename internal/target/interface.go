// SPDX-License-Identifier: Apache-2.0

package target

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ResolveInterface finds the interface called name, which may be an alternative
// name, in the network namespace of the calling thread. If want is DirectionAuto
// the direction follows from the kind of device. netns, when not empty, is where
// the caller believes the interface to be: a path, or a name that ip-netns(8)
// gave.
//
// The error is a *NotFoundError if there is no such interface or namespace, an
// *OtherNetnsError if netns is not the daemon's, and an *InvalidError if the
// interface cannot be filtered or its direction has to be given.
func ResolveInterface(name string, want Direction, netns string) (Target, error) {
	object := "interface " + name
	if !validName(name) {
		return Target{}, &InvalidError{Object: fmt.Sprintf("interface %q", name), Cause: "not an interface name"}
	}
	if want > Egress {
		return Target{}, &InvalidError{Object: object, Cause: "unknown direction " + want.String()}
	}
	if netns != "" {
		if err := checkNetns(netns, name); err != nil {
			return Target{}, err
		}
	}
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return Target{}, &NotFoundError{Object: object, Cause: "no such interface"}
	}
	if err != nil {
		return Target{}, fmt.Errorf("%s: %w", object, err)
	}
	cookie, err := NetnsCookie()
	if err != nil {
		return Target{}, fmt.Errorf("%s: %w", object, err)
	}
	if err := checkLink(link); err != nil {
		return Target{}, err
	}
	t := describe(link, cookie)
	t.Direction, t.Directed = want, want != DirectionAuto
	if want == DirectionAuto {
		if t.Direction, err = findDirection(link); err != nil {
			return Target{}, err
		}
	}
	return t, nil
}

// validName reports whether the kernel could have a device of this name or
// alternative name (dev_valid_name, ALTIFNAMSIZ).
func validName(name string) bool {
	return name != "" && len(name) < 128 && name != "." && name != ".." &&
		!strings.ContainsAny(name, "/:\x00 \t\n\v\f\r")
}

// checkLink refuses what no direction makes a target.
func checkLink(link netlink.Link) error {
	object := "interface " + link.Attrs().Name
	if link.Attrs().RawFlags&unix.IFF_LOOPBACK != 0 {
		return &InvalidError{Object: object, Cause: "the loopback interface is no target",
			Next: "attach a cgroup to filter the host's own processes"}
	}
	if layer := link.Attrs().EncapType; !judged[layer] {
		return &InvalidError{Object: object, Cause: fmt.Sprintf("link layer %s is not supported", layer)}
	}
	return nil
}

// judged are the link layers whose packets the filter can parse. GRE is not among
// them: without a fixed remote its packets carry the outer IP header at tc.
var judged = map[string]bool{
	"ether":      true,
	"none":       true, // tun, wireguard
	"ppp":        true,
	"ipip":       true,
	"tunnel6":    true,
	"sit":        true,
	"unknown519": true, // ARPHRD_RAWIP, which netlink has no name for
}

// describe returns the target that link is, without a direction.
func describe(link netlink.Link, cookie uint64) Target {
	attrs := link.Attrs()
	return Target{
		Type:        Interface,
		Name:        attrs.Name,
		Ifindex:     attrs.Index,
		NetnsCookie: cookie,
		LinkKind:    linkKind(link),
		MAC:         attrs.HardwareAddr.String(),
		Headerless:  attrs.EncapType != "ether",
	}
}

// linkKind returns IFLA_INFO_KIND, or "device" where the kernel gives none.
func linkKind(link netlink.Link) string {
	if kind := link.Type(); kind != "tuntap" {
		return kind
	}
	return "tun" // the kernel's name for both modes
}

// findDirection tells at which hook of link outbound packets are seen.
func findDirection(link netlink.Link) (Direction, error) {
	name := link.Attrs().Name
	ask := func(cause string) error {
		return &InvalidError{Object: "interface " + name, Cause: cause,
			Next: "say with --direction ingress or egress where the workload's packets pass"}
	}
	switch kind := linkKind(link); kind {
	case "veth", "tun", "bridge":
	case "macvtap":
		// What the guest writes to the character device is sent as if by this
		// host: tap_get_user ends in dev_queue_xmit (drivers/net/tap.c).
		return Egress, nil
	case "netkit":
		if nk, ok := link.(*netlink.Netkit); !ok || !nk.IsPrimary() {
			return 0, ask("is the workload's end of a netkit pair")
		}
	case "device":
		if link.Attrs().ParentDev == "" {
			return 0, ask("is no physical device")
		}
		return Egress, nil
	default:
		return 0, ask("the direction does not follow from its kind, " + kind)
	}
	// Such a device serves a workload, unless it is this host's own way out: the
	// veth of a container that the daemon runs in, the tun of a VPN, a bridge
	// over the uplink.
	leave, err := uplinks(&netlink.Handle{})
	if err != nil {
		return 0, fmt.Errorf("interface %s: %w", name, err)
	}
	if leave[link.Attrs().Index] {
		return 0, ask("a default route leaves by it")
	}
	return Ingress, nil
}

// uplinks returns the indexes of the devices by which a default route leaves, of
// either family, in any table. The two halves 0.0.0.0/1 and 128.0.0.0/1, with
// which VPN clients cover the default route, count as well.
func uplinks(h *netlink.Handle) (map[int]bool, error) {
	found := map[int]bool{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		// RT_TABLE_UNSPEC under RT_FILTER_TABLE lists every table.
		err := h.RouteListFilteredIter(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE,
			func(r netlink.Route) bool {
				if isDefault(r) {
					found[r.LinkIndex] = true
					for _, hop := range r.MultiPath {
						found[hop.LinkIndex] = true
					}
				}
				return true
			})
		// An interrupted dump may lack routes: better to ask than to guess.
		if err != nil {
			return nil, fmt.Errorf("default routes: %w", err)
		}
	}
	return found, nil
}

func isDefault(r netlink.Route) bool {
	if r.Type != unix.RTN_UNICAST {
		return false
	}
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones <= 1
}

func currentInterface(t Target) (Target, error) {
	cookie, err := NetnsCookie()
	if err != nil {
		return Target{}, fmt.Errorf("interface %s: %w", t.Name, err)
	}
	// The zero Handle asks in the calling thread's namespace.
	return lookInterface(&netlink.Handle{}, cookie, t)
}

// lookInterface looks for t through h, whose network namespace has that cookie.
func lookInterface(h *netlink.Handle, cookie uint64, t Target) (Target, error) {
	object := "interface " + t.Name
	if cookie != t.NetnsCookie {
		return Target{}, &NotFoundError{Object: object, Cause: "belongs to another network namespace"}
	}
	link, err := h.LinkByIndex(t.Ifindex)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return Target{}, &NotFoundError{Object: object, Cause: fmt.Sprintf("no interface has its index %d any more", t.Ifindex)}
	}
	if err != nil {
		return Target{}, fmt.Errorf("%s: %w", object, err)
	}
	now := describe(link, cookie)
	now.Direction, now.Directed = t.Direction, t.Directed
	if !now.Same(t) {
		return Target{}, &NotFoundError{Object: object,
			Cause: fmt.Sprintf("its index %d is now %s, a %s", t.Ifindex, now.Name, now.LinkKind)}
	}
	return now, nil
}
