// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestParseResolvConf(t *testing.T) {
	for _, tt := range []struct{ file, want string }{
		{"", "[]"},
		{"nameserver 192.0.2.1\n", "[192.0.2.1:53]"},
		{"nameserver\t192.0.2.1 # mine", "[192.0.2.1:53]"},
		{"# nameserver 192.0.2.1\n;nameserver 192.0.2.1\n nameserver 192.0.2.1\nnameserver192.0.2.1\nnameserver\nnameserver x\n", "[]"},
		{"search a\r\nnameserver 2001:db8::1\r\noptions ndots:5\r\nnameserver fe80::1%eth0\r\n", "[[2001:db8::1]:53 [fe80::1%eth0]:53]"},
		{"nameserver 192.0.2.1\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n", "[192.0.2.1:53 192.0.2.2:53 192.0.2.3:53]"},
	} {
		if got := fmt.Sprint(parseResolvConf([]byte(tt.file))); got != tt.want {
			t.Errorf("%q: %s, want %s", tt.file, got, tt.want)
		}
	}
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	r := ResolvConf(path)
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		expect := func(want string) {
			t.Helper()
			got, err := r.Servers()
			if want == "" {
				if err == nil || !strings.Contains(err.Error(), path) || len(got) > 0 {
					t.Errorf("%v, %v; want an error that names the file", got, err)
				}
			} else if fmt.Sprint(got) != want || err != nil {
				t.Errorf("%v, %v; want %s", got, err, want)
			}
		}
		expect("")
		write("nameserver 192.0.2.1\n") // at once, for there was none
		expect("[192.0.2.1:53]")
		write("nameserver 192.0.2.2\n")
		expect("[192.0.2.1:53]")
		<-time.After(time.Second)
		expect("[192.0.2.2:53]")
		<-time.After(time.Second)
		expect("[192.0.2.2:53]")
		write("search example.org\n")
		<-time.After(time.Second)
		expect("")
		write("nameserver 192.0.2.3\n")
		expect("[192.0.2.3:53]")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Second)
		expect("")
	})
}
