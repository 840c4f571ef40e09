// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"

	"go.yaml.in/yaml/v3"

	"github.com/netfence/netfence/policy"
)

// setDefaultPolicy takes what a policy file holds, less what chooses between files: this one is the last resort.
func setDefaultPolicy(c *Config, v value) error {
	p, err := v.policy()
	if err != nil {
		return err
	}
	if p.DNS.Mode == policy.DNSProxy {
		return errors.New("dns mode proxy needs a control plane, which does not use this policy")
	}
	c.DefaultPolicy = p
	return nil
}

func (v value) policy() (*policy.Policy, error) {
	node, err := v.structured()
	if err != nil {
		return nil, err
	}
	p := &policy.Policy{}
	if err := node.Decode(p); err != nil {
		return nil, err
	}
	return p, nil
}

// setGuard takes address rules only: a name is answered as a policy says.
func setGuard(c *Config, v value) error {
	node, err := v.structured()
	if err != nil {
		return err
	}
	g := &policy.Guard{}
	if err := node.Decode(g); err != nil {
		return err
	}
	if c.Guard = g; g.Empty() {
		c.Guard = nil
	}
	return nil
}

func setUpstream(c *Config, v value) error {
	list, err := v.list()
	if err != nil {
		return err
	}
	c.DNS.Upstreams = nil
	for _, text := range list {
		server, err := policy.ParseServer(text)
		if err != nil {
			return err
		}
		c.DNS.Upstreams = append(c.DNS.Upstreams, server)
	}
	return nil
}

// setForward reads zones the way a policy does, as part of one.
func setForward(c *Config, v value) error {
	forward, err := v.structured()
	if err != nil {
		return err
	}
	node := mapping("dns", mapping("forward", forward))
	node.Content = append(node.Content, scalar("mode"), scalar(policy.ModeBlockAll.String()))
	p, err := value{node: node}.policy()
	if err != nil {
		return err
	}
	c.DNS.Forward = p.DNS.Forward
	return nil
}

func mapping(name string, content *yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{scalar(name), content}}
}

func scalar(text string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: text} }

func setRefuseWith(c *Config, v value) error {
	text, err := v.text()
	if err != nil {
		return err
	}
	var code policy.RefuseCode
	if err := code.UnmarshalText([]byte(text)); err != nil {
		return err
	}
	if code == policy.RefuseDefault {
		return errors.New("this is where the default is set (nxdomain or refused)")
	}
	c.DNS.RefuseWith = code
	return nil
}
