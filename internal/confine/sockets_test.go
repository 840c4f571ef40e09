// SPDX-License-Identifier: Apache-2.0

package confine

import "testing"

func TestReceiver(t *testing.T) {
	for line, want := range map[string]string{
		"Num       RefCount Protocol Flags    Type St Inode Path":                              "",
		"0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/x.sock":               "/run/x.sock",
		"0000000000000000: 00000002 00000000 00010000 0005 01 12345 /run/with  two spaces":     "/run/with  two spaces",
		"0000000000000000: 00000002 00000000 00000000 0002 01 12345 /dev/log":                  "/dev/log",
		"0000000000000000: 00000003 00000000 00000000 0001 03 12345 /run/accepted.sock":        "",
		"0000000000000000: 00000002 00000000 00010000 0001 01 12345 @abstract":                 "",
		"0000000000000000: 00000002 00000000 00010000 0001 01 12345 relative":                  "",
		"0000000000000000: 00000003 00000000 00000000 0001 03 12345":                           "",
		"0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/../run/not/clean/./x": "/run/not/clean/x",
	} {
		if path, ok := receiver(line); path != want || ok != (want != "") {
			t.Errorf("%q: %q, %v", line, path, ok)
		}
	}
}
