// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"go.yaml.in/yaml/v3"
)

// setOnDisconnect takes keep, or {block: 10m}.
func setOnDisconnect(c *Config, v value) error {
	node, err := v.structured()
	if err != nil {
		return err
	}
	if node.Kind == yaml.ScalarNode && node.Value == "keep" {
		c.ControlPlane.BlockAfter = 0
		return nil
	}
	if node.Kind != yaml.MappingNode || len(node.Content) != 2 || node.Content[0].Value != "block" {
		return errors.New("is neither keep nor {block: 10m}")
	}
	after, err := value{node: resolve(node.Content[1])}.text()
	if err != nil {
		return fmt.Errorf("block %w", err)
	}
	if c.ControlPlane.BlockAfter, err = parseLife(after); err != nil {
		return fmt.Errorf("block: %w", err)
	}
	return nil
}

// What a heartbeat may be: seldom enough to cost nothing, often enough to tell a silent daemon from a dead one.
const (
	minHeartbeat = time.Second
	maxHeartbeat = 10 * time.Minute
)

func setHeartbeat(c *Config, v value) error {
	text, err := v.text()
	if err != nil {
		return err
	}
	d, err := parseDuration(text)
	if err == nil && (d < minHeartbeat || d > maxHeartbeat) {
		err = fmt.Errorf("%v is not between %v and %v", d, minHeartbeat, maxHeartbeat)
	}
	c.ControlPlane.Heartbeat = d
	return err
}

func setSPIFFEID(c *Config, v value) error {
	text, err := v.text()
	if err != nil {
		return err
	}
	if id, err := url.Parse(text); err != nil || id.Scheme != "spiffe" || id.Host == "" {
		return fmt.Errorf("%q is not spiffe://DOMAIN/PATH", text)
	}
	c.ControlPlane.TLS.SPIFFEID = text
	return nil
}

// check judges the keys together. Its errors begin with what follows control_plane.
func (c ControlPlane) check() error {
	remote := len(c.URL.Addresses) > 0
	switch {
	case !remote && (c.TLS != TLS{} || c.TokenFile != ""):
		return fmt.Errorf(".url: %s is in this process, where tls and token_file mean nothing (remove them)", c.URL)
	case c.Insecure && c.TLS != TLS{}:
		return errors.New(".insecure: plaintext is asked for, and tls too (remove one)")
	case c.Insecure && c.TokenFile != "" && !c.URL.Loopback():
		return errors.New(".token_file: the token would be sent in plaintext (remove insecure)")
	case (c.TLS.CertFile == "") != (c.TLS.KeyFile == ""):
		return errors.New(".tls: cert_file and key_file go together")
	case c.TLS.ServerName != "" && c.TLS.SPIFFEID != "":
		return errors.New(".tls: server_name and spiffe_id exclude each other (spiffe_id is checked instead of a name)")
	}
	return nil
}
