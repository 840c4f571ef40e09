// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"fmt"
	"log"
	"net/netip"

	"github.com/netfence/netfence/policy"
)

func Example() {
	file, err := policy.ParseFile("agents.yaml", []byte(`
mode: allowlist
allow:
  - 10.0.0.0/16
  - 192.0.2.10:443
  - "*.pypi.org"
deny:
  - 10.0.9.0/24
`))
	if err != nil {
		log.Fatal(err)
	}
	for _, to := range []string{"10.0.0.1:22", "10.0.9.1:22", "192.0.2.10:443", "192.0.2.10:80"} {
		dst := netip.MustParseAddrPort(to)
		d := file.Policy.Decide(policy.Flow{Addr: dst.Addr(), Port: dst.Port(), Protocol: policy.TCP}, 0)
		fmt.Printf("%s: %s (%s)\n", to, d.Action, d.Reason)
	}
	fmt.Println(file.Policy.DecideName("files.pypi.org").Reason)
	// Output:
	// 10.0.0.1:22: allow (allow rule 1: 10.0.0.0/16)
	// 10.0.9.1:22: deny (deny rule 1: 10.0.9.0/24)
	// 192.0.2.10:443: allow (allow rule 2: 192.0.2.10/32 ports 443)
	// 192.0.2.10:80: deny (mode allowlist, no rule matches 192.0.2.10 port 80/tcp)
	// allow rule *.pypi.org
}
