// SPDX-License-Identifier: Apache-2.0

package target

import (
	"encoding/json"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestZeroValuesAreClosed(t *testing.T) {
	if _, err := json.Marshal(Target{}); err == nil {
		t.Error("a Target of no type was encoded")
	}
	if (Target{}).Same(Target{}) {
		t.Error("two Targets of no type are the same object")
	}
	if _, err := Current(Target{}); err == nil {
		t.Error("a Target of no type was found")
	}
}

func TestTargetSurvivesJSON(t *testing.T) {
	for want, encoded := range map[Target]string{
		{Type: Interface, Name: "veth1", Ifindex: 7, NetnsCookie: 1 << 63, Direction: Ingress, LinkKind: "veth", MAC: "02:00:00:00:00:01"}: `{"type":"interface","name":"veth1","ifindex":7,"netns_cookie":9223372036854775808,"direction":"ingress","link_kind":"veth","mac":"02:00:00:00:00:01"}`,
		{Type: Cgroup, Name: "/sys/fs/cgroup/a", CgroupID: 42, Level: 1}:                                                                   `{"type":"cgroup","name":"/sys/fs/cgroup/a","cgroup_id":42,"level":1}`,
	} {
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if string(text) != encoded {
			t.Errorf("encoded %s\nwant %s", text, encoded)
		}
		var got Target
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("decoded %+v, want %+v", got, want)
		}
	}
}

func TestUnknownNamesAreRefused(t *testing.T) {
	var typ Type
	var dir Direction
	for _, text := range []string{"", "veth", "Interface"} {
		if err := typ.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("type %q was accepted", text)
		}
		if err := dir.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("direction %q was accepted", text)
		}
	}
	if _, err := Direction(9).MarshalText(); err == nil {
		t.Error("direction 9 was encoded")
	}
}

func TestSame(t *testing.T) {
	link := Target{Type: Interface, Name: "veth1", Ifindex: 7, NetnsCookie: 3, LinkKind: "veth", MAC: "02:00:00:00:00:01", Direction: Ingress}
	group := Target{Type: Cgroup, Name: "/a", CgroupID: 7, Level: 1}
	change := func(t Target, f func(*Target)) Target { f(&t); return t }
	for name, c := range map[string]struct {
		a, b Target
		same bool
	}{
		"itself":                  {link, link, true},
		"renamed":                 {link, change(link, func(t *Target) { t.Name = "veth2" }), true},
		"another MAC":             {link, change(link, func(t *Target) { t.MAC = "" }), true},
		"recreated":               {link, change(link, func(t *Target) { t.Ifindex = 8 }), false},
		"moved":                   {link, change(link, func(t *Target) { t.NetnsCookie = 4 }), false},
		"another kind":            {link, change(link, func(t *Target) { t.LinkKind = "tun" }), false},
		"cgroup":                  {group, group, true},
		"cgroup recreated":        {group, change(group, func(t *Target) { t.CgroupID = 8 }), false},
		"cgroup and interface":    {group, change(link, func(t *Target) { t.CgroupID = 7 }), false},
		"cgroup by another mount": {group, change(group, func(t *Target) { t.Name = "/b" }), true},
	} {
		if c.a.Same(c.b) != c.same || c.b.Same(c.a) != c.same {
			t.Errorf("%s: Same is not %t", name, c.same)
		}
	}
}
