// SPDX-License-Identifier: Apache-2.0

package run

import (
	"fmt"

	"github.com/netfence/netfence/internal/policyfile"
	"github.com/netfence/netfence/policy"
)

// policy is what the file and the flags say together. It has been judged as far as it can be here.
func (o *Options) policy() (*policy.Policy, []string, error) {
	p := &policy.Policy{Mode: policy.ModeAllowlist, DNS: policy.DNS{Mode: policy.DNSAllowlist}}
	var warnings []string
	if o.PolicyFile != "" {
		var err error
		if p, warnings, err = readPolicy(o.PolicyFile); err != nil {
			return nil, nil, err
		}
	}
	p, err := o.add(p)
	if err != nil {
		return nil, nil, err
	}
	if err := p.Validate(policy.Limits{Rules: o.Config.Limits.Rules}); err != nil {
		return nil, nil, err
	}
	if _, err := p.CompileWith(o.Config.Guard); err != nil {
		return nil, nil, err
	}
	return p, warnings, nil
}

func readPolicy(path string) (*policy.Policy, []string, error) {
	file, err := policyfile.Read(path)
	if err != nil {
		return nil, nil, err
	}
	warnings := file.Warnings
	if len(file.Match) > 0 {
		warnings = append(warnings, fmt.Sprintf("policy %s: its match is not asked, it was chosen by name", path))
	}
	return file.Policy, warnings, nil
}

func (o *Options) add(base *policy.Policy) (*policy.Policy, error) {
	p := *base
	p.Audit = p.Audit || o.Audit
	switch p.Mode {
	case policy.ModeAllowlist, policy.ModeDenylist:
	default:
		if len(o.Allow)+len(o.Deny) > 0 {
			return nil, fmt.Errorf("policy %s: its mode is %s, which asks no rules: --allow and --deny would do nothing", o.PolicyFile, p.Mode)
		}
	}
	for _, list := range []struct {
		flag    string
		rules   []string
		address *[]policy.Rule
		domain  *[]policy.DomainRule
	}{
		{"--allow", o.Allow, &p.Allow, &p.DNS.Allow},
		{"--deny", o.Deny, &p.Deny, &p.DNS.Deny},
	} {
		for _, text := range list.rules {
			rule, domain, err := policy.Parse(text)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", list.flag, err)
			}
			if rule != nil {
				*list.address = append(*list.address, *rule)
			} else {
				*list.domain = append(*list.domain, *domain)
			}
		}
	}
	if p.DNS.Mode == policy.DNSDisabled && len(p.DNS.Allow)+len(p.DNS.Deny) > len(base.DNS.Allow)+len(base.DNS.Deny) {
		return nil, fmt.Errorf("policy %s: its dns.mode is disabled: rules for names would do nothing", o.PolicyFile)
	}
	if len(o.Upstreams) > 0 {
		p.DNS.Upstreams = nil
	}
	for _, text := range o.Upstreams {
		server, err := policy.ParseServer(text)
		if err != nil {
			return nil, fmt.Errorf("--dns-upstream: %w", err)
		}
		p.DNS.Upstreams = append(p.DNS.Upstreams, server)
	}
	return &p, nil
}
