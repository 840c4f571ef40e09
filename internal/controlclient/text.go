// SPDX-License-Identifier: Apache-2.0

package controlclient

import "strings"

// maxText bounds what is quoted back, in bytes: it may be as large as a command.
const maxText = 256

// clip cuts text that quotes what came in.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText-len("…")], "") + "…"
}
