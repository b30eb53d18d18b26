import { describe, expect, test } from "vitest";
import type { PodSpec } from "../../../agent/kube/types.ts";
import { admitted, check, rejection, welcome } from "./admission-support.ts";
import { podOf } from "./support.ts";

describe("sysctls", () => {
  const wanting = (name: string, spec: Partial<PodSpec> = {}) =>
    podOf({ securityContext: { sysctls: [{ name, value: "1" }] }, ...spec });
  const forbidden = (text: string) => rejection("SysctlForbidden", `forbidden sysctl: ${text}`);
  const safe = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
  ];
  test.each(safe)("%s is safe", (name) => expect(admitted(wanting(name))).toEqual(welcome));
  const onOld = { kernelVersion: "4.4.0" };
  check([
    {
      name: "others are not allowed by themselves",
      pod: wanting("kernel.msgmax"),
      want: forbidden('"kernel.msgmax" not allowlisted'),
    },
    {
      name: "but by name",
      pod: wanting("kernel.msgmax"),
      context: { allowedUnsafeSysctls: ["kernel.msgmax"] },
      want: welcome,
    },
    {
      name: "or by prefix",
      pod: wanting("net.core.somaxconn"),
      context: { allowedUnsafeSysctls: ["kernel.msg*", "net.core.*"] },
      want: welcome,
    },
    { name: "with slashes they are the same", pod: wanting("net/ipv4/tcp_syncookies"), want: welcome },
    {
      name: "a dot of an interface stays one when slashes separate",
      pod: wanting("net/ipv4/conf/eth0.1/forwarding"),
      want: forbidden('"net.ipv4.conf.eth0/1.forwarding" not allowlisted'),
    },
    {
      name: "of the network are the host's with hostNetwork",
      pod: wanting("net.ipv4.tcp_syncookies", { hostNetwork: true }),
      want: forbidden('"net.ipv4.tcp_syncookies" not allowed with host net enabled'),
    },
    {
      name: "of IPC are the host's with hostIPC",
      pod: wanting("kernel.shm_rmid_forced", { hostIPC: true }),
      want: forbidden('"kernel.shm_rmid_forced" not allowed with host ipc enabled'),
    },
    {
      name: "of IPC do not care about hostNetwork",
      pod: wanting("kernel.shm_rmid_forced", { hostNetwork: true }),
      want: welcome,
    },
    {
      name: "safe since 4.5 is not before",
      pod: wanting("net.ipv4.tcp_keepalive_time"),
      context: onOld,
      want: rejection("SysctlForbidden"),
    },
    {
      name: "safe since 3.16 is with 4.4",
      pod: wanting("net.ipv4.ip_local_reserved_ports"),
      context: onOld,
      want: welcome,
    },
    {
      name: "safe since 4.15 is not with 4.4",
      pod: wanting("net.ipv4.tcp_rmem"),
      context: onOld,
      want: rejection("SysctlForbidden"),
    },
    {
      name: "a name that objects have by nature is no sysctl",
      pod: wanting("constructor"),
      want: rejection("SysctlForbidden"),
    },
  ]);
});
