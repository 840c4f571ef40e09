// SPDX-License-Identifier: Apache-2.0

package confine

// hidden is what no command sees: a directory is empty, anything else is /dev/null, for the command and for all that it
// starts. What matters is that somebody outside the cgroup acts at a word: sends, starts a process, or opens a device.
//
// Patterns are those of path.Match. What is not there is no error.
var hidden = []struct{ pattern, reason string }{
	// Those who resolve names.
	{"/run/nscd", "nscd asks the DNS"},
	{"/var/run/nscd", "the same where /var/run is no link"},
	{"/run/avahi-daemon", "resolves and publishes by mDNS"},
	{"/run/unbound*", "control of a resolver"},

	// Those who start processes.
	{"/run/systemd", "systemd-run, the resolver's varlink, machines, the journal that may forward"},
	{"/run/dbus", "the system bus: systemd, NetworkManager, resolved, PackageKit"},
	{"/run/user", "the session bus, systemd --user, rootless container engines"},
	{"/run/initctl", "init's fifo"},
	{"/run/runit*", "its supervisors' fifos"},
	{"/run/service", "supervisors of s6 and runit"},
	{"/run/s6*", "the same"},
	{"/run/openrc", "OpenRC"},
	{"/run/supervisor*", "supervisord's socket"},
	{"/run/fcron*", "fcron's fifo"},
	{"/run/bcron-spool", "bcron's"},
	{"/run/udev/control", "rules run programs"},
	{"/run/snapd*.socket", "snapd runs hooks"},
	{"/run/cockpit", "starts shells"},

	// Container engines and hypervisors.
	{"/run/docker", "docker's and its plugins' sockets"},
	{"/run/docker.sock", "docker"},
	{"/var/run/docker.sock", "docker where /var/run is no link"},
	{"/run/containerd", "containerd"},
	{"/run/buildkit", "buildkitd"},
	{"/run/podman", "podman"},
	{"/run/crio", "CRI-O"},
	{"/run/cri-dockerd.sock", "cri-dockerd"},
	{"/run/k3s", "k3s and its containerd"},
	{"/run/libvirt", "libvirt"},
	{"/var/lib/lxd/unix.socket", "LXD"},
	{"/var/snap/lxd/common/lxd/unix.socket", "LXD as a snap"},
	{"/var/lib/incus/unix.socket", "Incus"},
	{"/run/incus", "Incus"},

	// Those who send, or change how others do.
	{"/run/netfence*", "Netfence itself"},
	{"/var/run/netfence*", "the same"},
	{"/run/NetworkManager", "its private bus"},
	{"/run/wpa_supplicant", "wireless networks"},
	{"/run/openvswitch", "switches of the host"},
	{"/run/frr", "routing daemons"},
	{"/run/bird*", "the same"},
	{"/run/tailscale", "dials for who asks"},
	{"/run/tor", "a proxy"},
	{"/run/cups", "prints over the network"},
	{"/var/spool/postfix/public", "takes mail"},
	{"/var/spool/postfix/private", "the same"},
	{"/dev/log", "a syslog that may forward"},
	{"/run/rsyslogd*", "the same"},

	// Other terminals and desktops: whoever types there is outside.
	{"/tmp/tmux-*", "tmux servers"},
	{"/run/tmux", "the same"},
	{"/run/screen", "screens"},
	{"/run/screens", "the same"},
	{"/var/run/screen", "the same"},
	{"/tmp/screens", "the same"},
	{"/tmp/uscreens", "the same"},
	{"/tmp/.X11-unix", "X11: keys for any window"},
	{"/tmp/.ICE-unix", "X11 sessions"},
	{"/tmp/dbus-*", "session buses"},
	{"/tmp/emacs*", "Emacs servers"},
	{"/tmp/nvim.*", "Neovim servers"},
	{"/tmp/vscode-*.sock", "Visual Studio Code"},

	// Devices that send without a socket of this cgroup.
	{"/dev/net/tun", "a tap that its owner may open is a network card"},
	{"/dev/tap*", "macvtaps"},
	{"/dev/vhost-net", "the same from the other side"},
	{"/dev/vhost-vsock", "vsock"},
	{"/dev/vsock", "vsock"},
	{"/dev/infiniband", "RDMA goes past IP, and its device is often 0666"},
	{"/dev/vfio", "whole devices"},
	{"/dev/uinput", "keys for any window"},
	{"/dev/ppp", "links"},
	{"/dev/mem", "the kernel's memory"},
	{"/dev/port", "devices"},
	{"/dev/kmsg", "a log that may be forwarded"},
	{"/dev/bus/usb", "modems and network cards"},
}

// variables name sockets that somebody outside listens on and obeys. They are hidden like the above.
var variables = []string{
	"TMUX", "STY", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST", "CONTAINER_HOST", "NVIM", "NVIM_LISTEN_ADDRESS",
	"VSCODE_IPC_HOOK_CLI", "KITTY_LISTEN_ON", "WEZTERM_UNIX_SOCKET", "ZELLIJ_SOCKET_DIR", "I3SOCK", "SWAYSOCK",
}

// hiddenTypes are file systems that are ways to the kernel itself; where one is mounted does not matter.
var hiddenTypes = map[string]string{
	"bpf":         "pinned maps and links",
	"tracefs":     "probes, and the filter's own programs",
	"debugfs":     "the same",
	"securityfs":  "security modules",
	"configfs":    "kernel objects: targets, gadgets",
	"pstore":      "the kernel's log",
	"efivarfs":    "what the machine boots",
	"binfmt_misc": "interpreters that the kernel starts",
	"fusectl":     "file systems of others",
	"resctrl":     "caches",
}

// readOnlyTypes are file systems whose files are the kernel's switches.
var readOnlyTypes = map[string]string{
	"cgroup": "a process is moved by a write",
	"sysfs":  "uevent_helper, devices",
}

// For uid 0, whom file modes do not keep out. In /proc of the command's own PID namespace:
var (
	procReadOnly = []string{"bus", "fs", "irq", "sys", "sysrq-trigger"}
	procMasked   = []string{
		"acpi", "asound", "kcore", "kmsg", "keys", "latency_stats", "mtrr", "sched_debug", "scsi", "timer_list", "vmcore",
	}
)

// rootDevices are those of /dev that remain for uid 0, who could else write to disks.
var rootDevices = []string{
	"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "hugepages", "fuse", "kvm", "dri",
	"snd", "nvidia*", "kfd",
}

// wayOutGroups are supplementary groups that a command does not keep: their members command a daemon of the host, or
// hold its disks and memory, and who leaves the socket of such a daemon elsewhere is not found by the table above.
var wayOutGroups = []string{
	"disk", "docker", "incus", "incus-admin", "kmem", "libvirt", "lxd", "microk8s", "netdev", "podman",
}

// WayOutGroups are names of groups that a User should not have.
func WayOutGroups() []string { return append([]string(nil), wayOutGroups...) }
