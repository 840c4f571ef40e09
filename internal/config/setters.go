// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"unicode/utf8"
)

func setLogLevel(c *Config, v value) error {
	text, err := v.text()
	if err != nil {
		return err
	}
	switch text {
	case "debug":
		c.LogLevel = slog.LevelDebug
	case "info":
		c.LogLevel = slog.LevelInfo
	case "warn":
		c.LogLevel = slog.LevelWarn
	case "error":
		c.LogLevel = slog.LevelError
	default:
		return fmt.Errorf("%q is none of debug, info, warn, error", text)
	}
	return nil
}

func setInterfaceHook(c *Config, v value) error {
	text, err := v.text()
	if err != nil {
		return err
	}
	switch text {
	case "auto":
		c.InterfaceHook = HookAuto
	case "tcx":
		c.InterfaceHook = HookTCX
	case "clsact":
		c.InterfaceHook = HookClsact
	default:
		return fmt.Errorf("%q is none of auto, tcx, clsact", text)
	}
	return nil
}

func setMetadata(c *Config, v value) error {
	pairs, err := v.pairs()
	if err != nil {
		return err
	}
	c.Metadata = pairs
	return nil
}

// checkMetadata bounds what goes over the wire; protobuf strings must be UTF-8.
func checkMetadata(metadata map[string]string, limit int) error {
	total := 0
	for name, text := range metadata {
		if name == "" {
			return errors.New("a name is empty")
		}
		if !utf8.ValidString(name) || !utf8.ValidString(text) {
			return fmt.Errorf("%q is not UTF-8", name)
		}
		total += len(name) + len(text)
	}
	if total > limit {
		return fmt.Errorf("%d bytes are more than limits.metadata_bytes, %d", total, limit)
	}
	return nil
}

// setDaemonID takes what any control plane can hold as a key.
func setDaemonID(c *Config, v value) error {
	text, err := v.text()
	if err != nil {
		return err
	}
	if len(text) == 0 || len(text) > 128 || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return fmt.Errorf("%q is not 1 to 128 printable ASCII characters without spaces", text)
	}
	c.DaemonID = text
	return nil
}

func setURL(c *Config, v value) error {
	list, err := v.list()
	if err != nil {
		return err
	}
	endpoint, err := parseEndpoint(list)
	if err != nil {
		return err
	}
	c.ControlPlane.URL = endpoint
	return nil
}

func setUnreachable(c *Config, v value) error {
	text, err := v.text()
	if err != nil {
		return err
	}
	switch text {
	case "fail":
		c.ControlPlane.AttachWhenUnreachable = UnreachableFail
	case "pending":
		c.ControlPlane.AttachWhenUnreachable = UnreachablePending
	case "cached":
		c.ControlPlane.AttachWhenUnreachable = UnreachableCached
	default:
		return fmt.Errorf("%q is none of fail, cached, pending", text)
	}
	return nil
}

func setMaxFlow(c *Config, v value) error {
	text, err := v.text()
	if err != nil {
		return err
	}
	tcp, other, both := strings.Cut(text, "/")
	if !both {
		other = tcp
	}
	if c.DNS.MaxFlowTCP, err = parseLife(tcp); err != nil {
		return err
	}
	c.DNS.MaxFlowOther, err = parseLife(other)
	return err
}

func setCacheBytes(c *Config, v value) error {
	text, err := v.text()
	if err != nil {
		return err
	}
	const most = 1 << 30
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > most {
		return fmt.Errorf("%q is not a number between 0 (nothing is kept) and %d", text, most)
	}
	c.DNS.CacheBytes = n
	return nil
}

func setServeStale(c *Config, v value) (err error) {
	text, err := v.text()
	if err != nil {
		return err
	}
	if text == "off" {
		c.DNS.ServeStale = 0
		return nil
	}
	c.DNS.ServeStale, err = parseLife(text)
	return err
}

func setEventRate(c *Config, v value) error {
	text, err := v.text()
	if err != nil {
		return err
	}
	text = strings.TrimSuffix(text, "/s")
	return count(func(c *Config) *int { return &c.Events.Rate })(c, value{node: scalar(text)})
}

func setMetricsListen(c *Config, v value) error {
	text, err := v.text()
	if err != nil {
		return err
	}
	if text == "off" {
		c.Metrics.Listen = ""
		return nil
	}
	if _, _, err := net.SplitHostPort(text); err != nil {
		return fmt.Errorf("%q is neither off nor host:port", text)
	}
	c.Metrics.Listen = text
	return nil
}
