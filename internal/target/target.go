// SPDX-License-Identifier: Apache-2.0

// Package target finds what an attachment filters, a network interface or a
// cgroup v2 directory, tells whether a later look still sees the same object,
// and watches for its disappearance.
//
// Everything here speaks of the network namespace of the calling thread, which
// for the daemon is the one that it was started in.
package target

import (
	"fmt"
	"slices"
)

// Type says what kind of object a target is. The zero value is no target.
type Type uint8

const (
	// Interface is a network device in the daemon's network namespace.
	Interface Type = 1
	// Cgroup is a directory of the cgroup v2 hierarchy, children included.
	Cgroup Type = 2
)

var typeNames = []string{"", "interface", "cgroup"}

func (t Type) String() string { return enumName("Type", typeNames, uint8(t)) }

// MarshalText encodes a valid type by name; the zero value has none.
func (t Type) MarshalText() ([]byte, error) {
	if t != Interface && t != Cgroup {
		return nil, fmt.Errorf("target type %d: unknown", uint8(t))
	}
	return []byte(t.String()), nil
}

// UnmarshalText accepts "interface" and "cgroup".
func (t *Type) UnmarshalText(text []byte) error {
	i := slices.Index(typeNames, string(text))
	if i <= 0 {
		return fmt.Errorf("target type %q: unknown (interface or cgroup)", text)
	}
	*t = Type(i)
	return nil
}

// Direction is the hook of an interface at which outbound packets, those that
// the workload sends, are seen. It is meaningless for a cgroup and stays zero.
type Direction uint8

const (
	// DirectionAuto asks ResolveInterface to find the direction. No resolved
	// interface has it.
	DirectionAuto Direction = 0
	// Ingress is right for the host-side end of a workload: what the workload
	// sends arrives there.
	Ingress Direction = 1
	// Egress is right for a device through which this host itself sends.
	Egress Direction = 2
)

var directionNames = []string{"auto", "ingress", "egress"}

func (d Direction) String() string { return enumName("Direction", directionNames, uint8(d)) }

// MarshalText encodes the direction by name.
func (d Direction) MarshalText() ([]byte, error) {
	if int(d) >= len(directionNames) {
		return nil, fmt.Errorf("direction %d: unknown", uint8(d))
	}
	return []byte(d.String()), nil
}

// UnmarshalText accepts "auto", "ingress" and "egress".
func (d *Direction) UnmarshalText(text []byte) error {
	i := slices.Index(directionNames, string(text))
	if i < 0 {
		return fmt.Errorf("direction %q: unknown (auto, ingress or egress)", text)
	}
	*d = Direction(i)
	return nil
}

func enumName(enum string, names []string, v uint8) string {
	if int(v) < len(names) && names[v] != "" {
		return names[v]
	}
	return fmt.Sprintf("%s(%d)", enum, v)
}

// Target is one object that can be filtered, as it was when it was resolved. It
// is comparable, but two looks at one object differ after a rename: use Same to
// ask for identity.
type Target struct {
	Type Type `json:"type"`
	// Name is the interface's name, or the cgroup's cleaned absolute path with
	// symbolic links resolved.
	Name string `json:"name"`

	// Ifindex is unique within a network namespace only, so NetnsCookie, which
	// the kernel never reuses during a boot, belongs to it.
	Ifindex     int       `json:"ifindex,omitzero"`
	NetnsCookie uint64    `json:"netns_cookie,omitzero"`
	Direction   Direction `json:"direction,omitzero"`
	// Directed is set where the direction was asked for. Else it follows from the
	// device, and what later makes another of it is reported; see Doubtful.
	Directed bool `json:"directed,omitzero"`
	// LinkKind is the kernel's name for the kind of device ("veth", "tun",
	// "bridge", …) and "device" for one without, such as a network card.
	LinkKind string `json:"link_kind,omitzero"`
	// MAC is the hardware address at the time of the look, empty if there is
	// none. It is shown, and no part of the identity; see Same.
	MAC string `json:"mac,omitzero"`
	// Headerless is set for layer 3 devices, whose packets begin with the IP
	// header.
	Headerless bool `json:"headerless,omitzero"`

	// CgroupID is the kernel's id of the cgroup, never reused during a boot.
	CgroupID uint64 `json:"cgroup_id,omitzero"`
	// Level is the depth below the root cgroup, whose level is 0, as
	// bpf_skb_ancestor_cgroup_id counts. It holds in the host's cgroup
	// namespace; the root of any other one is not the root of the hierarchy.
	Level int `json:"level,omitzero"`
}

// String returns the words that name the target in messages.
func (t Target) String() string { return t.Type.String() + " " + t.Name }

// Same reports whether t and other are looks at one object within one boot.
// Names do not count, because a rename is followed. MAC addresses do not either:
// a bridge takes the address of its ports, udev sets one after creation, and to
// call that a disappearance would end the filter of a live workload. An interface
// that was deleted and created again with its old index on purpose is told apart
// by the Watcher, which sees the deletion, and by the tcx link, which dies with
// the device.
func (t Target) Same(other Target) bool {
	if t.Type == 0 {
		return false
	}
	return t.key() == other.key()
}

// key is the part of a target that identifies it.
type key struct {
	typ         Type
	ifindex     int
	netnsCookie uint64
	linkKind    string
	cgroupID    uint64
}

func (t Target) key() key {
	if t.Type == Cgroup {
		return key{typ: Cgroup, cgroupID: t.CgroupID}
	}
	return key{typ: t.Type, ifindex: t.Ifindex, netnsCookie: t.NetnsCookie, linkKind: t.LinkKind}
}

// Current looks at the object that t describes again and returns it as it is
// now, perhaps under another name and with t's direction. The error is a
// *NotFoundError if the object is gone: deleted, deleted and created again under
// the same name, or, for an interface, moved to another network namespace.
func Current(t Target) (Target, error) {
	switch t.Type {
	case Interface:
		return currentInterface(t)
	case Cgroup:
		return currentCgroup(t)
	default:
		return Target{}, &InvalidError{Object: t.String(), Cause: "is no target"}
	}
}
