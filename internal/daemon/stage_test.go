// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"reflect"
	"testing"
)

func TestStagesStopInReverse(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var stopped []string
	waiting := func(name string) stage {
		return stage{name, func(ctx context.Context) error {
			<-ctx.Done()
			stopped = append(stopped, name)
			return nil
		}}
	}
	err := runStages(ctx, []stage{waiting("a"), waiting("b"), waiting("c")}, cancel)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"c", "b", "a"}; !reflect.DeepEqual(stopped, want) {
		t.Errorf("stopped %v, want %v", stopped, want)
	}
}

func TestStageThatEndsEndsAll(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"with an error": {errors.New("no"), "b: no"},
		"unasked":       {nil, "b: ended unasked"},
	} {
		t.Run(name, func(t *testing.T) {
			a := stage{"a", func(ctx context.Context) error { <-ctx.Done(); return nil }}
			b := stage{"b", func(context.Context) error { return test.err }}
			err := runStages(context.Background(), []stage{a, b}, func() {})
			if err == nil || err.Error() != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}
