// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/policyfile"
	"github.com/netfence/netfence/internal/wire"
)

type attachFlags struct {
	iface, cgroup    string
	pid              int32
	netns, direction string
	key              string
	metadata         map[string]string
	policy           string
	policyName       string
	inherit          string
	dryRun           bool
}

func (a *app) attach() *cobra.Command {
	var f attachFlags
	cmd := &cobra.Command{
		Use:   "attach (--interface NAME | --cgroup PATH | --pid PID)",
		Short: "Filter an interface or a cgroup",
		Long: `Filter what a workload sends. The filter drops everything from its first instant, and the command returns when the
target's policy is in force. It prints the attachment's id. A failed attach leaves nothing behind.

With --key the command may be repeated: it then prints the id of the attachment that is already there.

With --policy the attachment has the policy of that file, whose match is not asked, and no control plane decides over it. To
replace the policy, repeat the command with the same --key.

With --policy-name the attachment begins with a policy that the control plane has sent to this daemon by name, whether or not it is
there now. It may give the attachment another one later.

With --inherit-learned-from a workload that was copied from another, a virtual machine from a snapshot say, may go on with the
addresses that the other has asked for, as far as its own policy allows their names, and for as long as they hold there.`,
		Example: `  netfenced attach --interface veth0 --metadata tenant=acme,env=prod
  netfenced attach --cgroup /sys/fs/cgroup/system.slice/agent.service
  netfenced attach --pid 4711 --key job-7 -o json
  netfenced attach --cgroup /sys/fs/cgroup/job-7 --key job-7 --policy agents.yaml
  netfenced attach --interface eth0 --direction egress`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringVar(&f.iface, "interface", "", "network interface of this host, such as the host's end of a veth pair")
	flags.StringVar(&f.cgroup, "cgroup", "", "cgroup v2 directory, children included")
	flags.Int32Var(&f.pid, "pid", 0, "process whose cgroup is filtered")
	flags.StringVar(&f.direction, "direction", "auto", "where the workload's packets pass the interface: auto, ingress or egress")
	flags.StringVar(&f.netns, "netns", "", "network namespace of the interface, if it is not the daemon's")
	flags.StringVar(&f.key, "key", "", "own name for the attachment, which makes a retry safe")
	flags.StringToStringVar(&f.metadata, "metadata", nil, "`k=v,k=v` pairs that policies match")
	flags.StringVar(&f.policy, "policy", "", "policy `FILE` that the attachment has, in place of the control plane's")
	flags.StringVar(&f.policyName, "policy-name", "", "first policy, by a name under which the control plane has sent it")
	flags.StringVar(&f.inherit, "inherit-learned-from", "", "`ID` of the attachment whose learned addresses this one has, too")
	flags.BoolVar(&f.dryRun, "dry-run", false, "check everything, change nothing")
	output := outputFlag(cmd)
	cmd.RunE = a.run(func(cmd *cobra.Command, _ []string) error {
		request, err := f.request(cmd)
		if err != nil {
			return err
		}
		if f.policy != "" && f.policyName != "" {
			return usagef("attach: --policy and --policy-name do not go together (see `netfenced attach --help`)")
		}
		if f.policy != "" {
			if request.Policy, err = a.ownPolicy(f.policy); err != nil {
				return err
			}
		}
		return a.call(cmd.Context(), func(daemon netfencev1.DaemonServiceClient) error {
			response, err := daemon.Attach(cmd.Context(), request)
			if err != nil {
				return err
			}
			return a.printAttached(response, *output)
		})
	})
	return cmd
}

func (f attachFlags) request(cmd *cobra.Command) (*netfencev1.AttachRequest, error) {
	r := &netfencev1.AttachRequest{Metadata: f.metadata, Netns: f.netns, Key: f.key, PolicyName: f.policyName, InheritLearnedFrom: f.inherit, DryRun: f.dryRun}
	targets := 0
	if cmd.Flags().Changed("interface") {
		targets++
		r.Target = &netfencev1.AttachRequest_InterfaceName{InterfaceName: f.iface}
	}
	if cmd.Flags().Changed("cgroup") {
		targets++
		r.Target = &netfencev1.AttachRequest_CgroupPath{CgroupPath: f.cgroup}
	}
	if cmd.Flags().Changed("pid") {
		targets++
		r.Target = &netfencev1.AttachRequest_Pid{Pid: f.pid}
	}
	if targets != 1 {
		return nil, usagef("attach: name one target with --interface, --cgroup or --pid (see `netfenced attach --help`)")
	}
	switch f.direction {
	case "auto":
	case "ingress":
		r.Direction = netfencev1.Direction_DIRECTION_INGRESS
	case "egress":
		r.Direction = netfencev1.Direction_DIRECTION_EGRESS
	default:
		return nil, usagef("attach: --direction %q is none of auto, ingress, egress", f.direction)
	}
	return r, nil
}

// ownPolicy reads the file of --policy.
func (a *app) ownPolicy(path string) (*netfencev1.BulkUpdate, error) {
	file, err := policyfile.Read(path)
	if err != nil {
		return nil, err
	}
	for _, warning := range file.Warnings {
		fmt.Fprintf(a.stderr, "warning: policy %s: %s\n", path, warning)
	}
	return wire.BulkUpdate(file.Policy, wire.Self())
}

// attachedRecord is what -o json prints.
type attachedRecord struct {
	ID          string   `json:"id"`
	DNSAddress  string   `json:"dns_address"`
	Created     bool     `json:"created"`
	Warnings    []string `json:"warnings"`
	Nameservers []string `json:"nameservers"`
}

func (a *app) printAttached(r *netfencev1.AttachResponse, output format) error {
	if output == formatJSON {
		return printJSON(a.stdout, attachedRecord{
			ID: r.GetId(), DNSAddress: r.GetDnsAddress(), Created: r.GetCreated(),
			Warnings: orEmpty(r.GetWarnings()), Nameservers: orEmpty(r.GetNameservers()),
		})
	}
	for _, warning := range r.GetWarnings() {
		if _, err := fmt.Fprintln(a.stderr, "warning:", warning); err != nil {
			return err
		}
	}
	if r.GetId() == "" {
		return nil // a dry run
	}
	_, err := fmt.Fprintln(a.stdout, r.GetId())
	return err
}

// orEmpty makes an absent list [] in JSON, and not null.
func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
