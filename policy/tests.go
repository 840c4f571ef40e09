// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"

	"go.yaml.in/yaml/v3"
)

// maxTests bounds what is judged each time that a file is read.
const maxTests = 1000

// test is a packet, and what a policy file says is its verdict.
type test struct {
	packet Packet
	want   Action
	text   string
	node   *yaml.Node
}

// readTests reads {allow: [PACKET…], deny: [PACKET…]}.
func (d *decoder) readTests(n *yaml.Node) error {
	list := func(want Action) func(*yaml.Node) error {
		return func(n *yaml.Node) error {
			where := "tests " + want.String()
			return sequence(n, where, func(i int, item *yaml.Node) error {
				text, err := scalar(item)
				t := test{want: want, text: text, node: item}
				if err == nil {
					t.packet, err = ParsePacket(text)
				}
				if err == nil && len(d.tests) == maxTests {
					err = fmt.Errorf("more than %d tests", maxTests)
				}
				if err != nil {
					return at(item, "%s entry %d: %v", where, i+1, err)
				}
				d.tests = append(d.tests, t)
				return nil
			})
		}
	}
	return mapping(n, "tests: ", []key{{"allow", list(Allow)}, {"deny", list(Deny)}})
}

// runTests judges by the policy alone: no guard, no audit, and no rule has expired.
func (d *decoder) runTests(p *Policy) error {
	for _, t := range d.tests {
		e := p.Explain(nil, t.packet)
		if e.Action != t.want {
			return at(t.node, "test failed: %s is to be %s, and is %s: %s", t.text, verdicts[t.want], verdicts[e.Action], e.Reason)
		}
	}
	return nil
}

var verdicts = map[Action]string{Allow: "allowed", Deny: "denied"}
