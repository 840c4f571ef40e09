// SPDX-License-Identifier: Apache-2.0

// Command coredns is CoreDNS with the plugins that its benchmark needs, and no others.
package main

import (
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/forward"

	"github.com/coredns/coredns/coremain"
)

func main() { coremain.Run() }
