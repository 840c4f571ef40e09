// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"fmt"
	"testing"
	"time"
)

// TestRefusalsAreBounded: a daemon that refuses without end is told of so often, and how much was not told of; nobody else is
// told of less for it, and what is kept of daemons that were here once is not kept for ever.
func TestRefusalsAreBounded(t *testing.T) {
	var r refusals
	now := time.Now()
	for i := range 3 * refusalsTold {
		if told, untold := r.admit("bad", now); told != (i < refusalsTold) || untold != 0 {
			t.Fatalf("refusal %d: told %v, %d untold", i, told, untold)
		}
	}
	if told, _ := r.admit("good", now); !told {
		t.Error("another daemon's refusal was not told of")
	}
	now = now.Add(refusalsWindow)
	if told, untold := r.admit("bad", now); !told || untold != 2*refusalsTold {
		t.Errorf("a minute later: told %v, %d untold", told, untold)
	}
	for i := range 3 * maxWindows {
		r.admit(fmt.Sprint(i), now.Add(time.Duration(i)*refusalsWindow/1000))
	}
	if n := len(r.windows); n > maxWindows {
		t.Errorf("%d daemons are kept", n)
	}
}
