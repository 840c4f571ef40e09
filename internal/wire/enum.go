// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"strings"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/policy"
)

// pair is one value in the two languages. What is not listed is refused, UNSPECIFIED too unless unset has a meaning. Where
// two values of the protocol mean one of the policy, the first listed goes out.
type pair[P, W comparable] struct {
	policy P
	wire   W
}

var (
	modes = []pair[policy.Mode, netfencev1.PolicyMode]{
		{policy.ModeBlockAll, netfencev1.PolicyMode_POLICY_MODE_BLOCK_ALL},
		{policy.ModeAllowlist, netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST},
		{policy.ModeDenylist, netfencev1.PolicyMode_POLICY_MODE_DENYLIST},
		{policy.ModeDisabled, netfencev1.PolicyMode_POLICY_MODE_DISABLED},
	}
	dnsModes = []pair[policy.DNSMode, netfencev1.DnsMode]{
		{policy.DNSAllowlist, netfencev1.DnsMode_DNS_MODE_ALLOWLIST},
		{policy.DNSDenylist, netfencev1.DnsMode_DNS_MODE_DENYLIST},
		{policy.DNSProxy, netfencev1.DnsMode_DNS_MODE_PROXY},
		{policy.DNSDisabled, netfencev1.DnsMode_DNS_MODE_DISABLED},
	}
	protocols = []pair[policy.Protocol, netfencev1.Protocol]{
		{policy.AnyProtocol, netfencev1.Protocol_PROTOCOL_UNSPECIFIED},
		{policy.TCP, netfencev1.Protocol_PROTOCOL_TCP},
		{policy.UDP, netfencev1.Protocol_PROTOCOL_UDP},
	}
	// The default of the next three goes out as unset, so that a policy without additions stays a published message.
	replies = []pair[policy.ReplyMode, netfencev1.Replies]{
		{policy.RepliesDefault, netfencev1.Replies_REPLIES_UNSPECIFIED},
		{policy.RepliesDefault, netfencev1.Replies_REPLIES_ALLOW},
		{policy.RepliesDeny, netfencev1.Replies_REPLIES_DENY},
	}
	loopbacks = []pair[policy.LoopbackMode, netfencev1.Loopback]{
		{policy.LoopbackOwn, netfencev1.Loopback_LOOPBACK_UNSPECIFIED},
		{policy.LoopbackOwn, netfencev1.Loopback_LOOPBACK_OWN},
		{policy.LoopbackAllow, netfencev1.Loopback_LOOPBACK_ALLOW},
		{policy.LoopbackDeny, netfencev1.Loopback_LOOPBACK_DENY},
	}
	refuseCodes = []pair[policy.RefuseCode, netfencev1.RefuseCode]{
		{policy.RefuseDefault, netfencev1.RefuseCode_REFUSE_CODE_UNSPECIFIED},
		{policy.RefuseNXDomain, netfencev1.RefuseCode_REFUSE_CODE_NXDOMAIN},
		{policy.RefuseRefused, netfencev1.RefuseCode_REFUSE_CODE_REFUSED},
	}
)

// Mode is how a mode goes out.
func Mode(m policy.Mode) netfencev1.PolicyMode { return encode(modes, m) }

// DNSMode is how a DNS mode goes out.
func DNSMode(m policy.DNSMode) netfencev1.DnsMode { return encode(dnsModes, m) }

// ModeFrom reads a mode. UNSPECIFIED and unknown ones are refused.
func ModeFrom(m netfencev1.PolicyMode) (policy.Mode, error) { return decode(modes, m) }

// DNSModeFrom reads a DNS mode. UNSPECIFIED and unknown ones are refused.
func DNSModeFrom(m netfencev1.DnsMode) (policy.DNSMode, error) { return decode(dnsModes, m) }

func encode[P, W comparable](pairs []pair[P, W], v P) W {
	for _, p := range pairs {
		if p.policy == v {
			return p.wire
		}
	}
	panic(fmt.Sprintf("wire: %T %v has no value in the protocol", v, v))
}

func decode[P, W comparable](pairs []pair[P, W], v W) (P, error) {
	for _, p := range pairs {
		if p.wire == v {
			return p.policy, nil
		}
	}
	names := make([]string, len(pairs))
	for i, p := range pairs {
		names[i] = fmt.Sprint(p.wire)
	}
	var none P
	return none, fmt.Errorf("one of %s", strings.Join(names, ", "))
}
