import { describe, expect, test } from "vitest";
import { parse } from "yaml";
import { parseCommandLine } from "../../../agent/config/load.ts";
import { proxyConfigz } from "../../../agent/config/load-proxy.ts";
import { fakeHost, fixture, problemsOf, proxyCommand, proxyHead, proxyWith, runCommand } from "./support.ts";

describe("configurations of the field", () => {
  test("kubeadm's is read without a warning", () => {
    const { proxy, warnings } = proxyCommand(["--config=/p", "--hostname-override=n1"], {
      files: { "/p": fixture("kubeadm-kube-proxy.yaml") },
    });
    expect(warnings).toEqual([]);
    expect(proxy.config).toMatchObject({
      hostnameOverride: "n1",
      mode: "iptables",
      clusterCIDR: "10.244.0.0/16",
      detectLocalMode: "ClusterCIDR",
      clientConnection: { kubeconfig: "/var/lib/kube-proxy/kubeconfig.conf", qps: 5, burst: 10 },
      iptables: { masqueradeBit: 14, localhostNodePorts: true, syncPeriod: 30_000, minSyncPeriod: 1000 },
      conntrack: {
        maxPerCore: 32_768,
        min: 131_072,
        tcpEstablishedTimeout: 86_400_000,
        tcpCloseWaitTimeout: 3_600_000,
      },
      healthzBindAddress: "0.0.0.0:10256",
      metricsBindAddress: "127.0.0.1:10249",
      configSyncPeriod: 900_000,
      nodePortAddresses: [],
    });
  });

  test("kind's leaves conntrack alone", () => {
    const { proxy } = proxyCommand(["--config=/p"], { files: { "/p": fixture("kind-kube-proxy.yaml") } });
    expect(proxy.config.conntrack).toMatchObject({ maxPerCore: 0, tcpEstablishedTimeout: 0, tcpCloseWaitTimeout: 0 });
  });
});

test("what --write-config-to writes is read as the same settings", () => {
  const args = ["--cluster-cidr=10.0.0.0/8,fd00::/48", "--conntrack-udp-timeout=10s", "--nodeport-addresses=primary"];
  const command = parseCommandLine(["proxy", ...args, "--write-config-to=/out"], fakeHost());
  if (command.kind !== "writeConfig") throw new Error(command.kind);
  expect(command.path).toBe("/out");
  expect(parse(command.text)).toMatchObject({ kind: "KubeProxyConfiguration", conntrack: { udpTimeout: "10s" } });
  const read = proxyCommand(["--config=/out"], { files: { "/out": command.text } });
  expect(read.proxy.config).toEqual(proxyCommand(args).proxy.config);
});

test("/configz says what a mode makes of a list that is left empty", () => {
  const shown = (fields: string) => proxyConfigz(proxyWith(fields).proxy.config)["kubeproxy.config.k8s.io"];
  expect(shown("mode: nftables")).toMatchObject({ nodePortAddresses: ["primary"] });
  expect(shown("mode: nftables\nnodePortAddresses: [10.0.0.0/8]")).toMatchObject({ nodePortAddresses: ["10.0.0.0/8"] });
  expect(shown("mode: iptables")).toMatchObject({ kind: "KubeProxyConfiguration", nodePortAddresses: [] });
});

describe("addresses", () => {
  const cases: [fields: string, args: string[], healthz: string, metrics: string][] = [
    ["", [], "0.0.0.0:10256", "127.0.0.1:10249"],
    ["bindAddress: '::'", [], "[::]:10256", "[::1]:10249"],
    ["healthzBindAddress: 10.0.0.1\nmetricsBindAddress: '::1'", [], "10.0.0.1:10256", "[::1]:10249"],
    ["healthzBindAddress: '10.0.0.1:1'\nmetricsBindAddress: '[fd00::1]:2'", [], "10.0.0.1:1", "[fd00::1]:2"],
  ];
  test.each(cases)("%s", (fields, args, healthz, metrics) => {
    const { config } = proxyWith(fields, args).proxy;
    expect([config.healthzBindAddress, config.metricsBindAddress]).toEqual([healthz, metrics]);
  });

  test("by flag: ports fill in, 0 switches off, empty is ignored", () => {
    const { config } = proxyCommand([
      "--healthz-port=0",
      "--metrics-port=7",
      "--metrics-bind-address=",
      "--bind-address=",
    ]).proxy;
    expect(config).toMatchObject({ healthzBindAddress: "", metricsBindAddress: "127.0.0.1:7", bindAddress: "0.0.0.0" });
  });
});

describe("flags beside a file", () => {
  test("only a few override it; the rest is named", () => {
    const { proxy, warnings } = proxyWith("clusterCIDR: 10.0.0.0/8\nhostnameOverride: file", [
      "--cluster-cidr=192.168.0.0/16",
      "--hostname-override=flag",
      "--master=https://a:1",
      "-v=4",
      "--healthz-port=1",
    ]);
    expect(proxy.master).toBe("https://a:1");
    expect(proxy.config).toMatchObject({
      clusterCIDR: "10.0.0.0/8",
      hostnameOverride: "flag",
      logging: { verbosity: 4 },
    });
    expect(warnings).toEqual(["flags ignored because of --config /etc/p.yaml: --cluster-cidr, --healthz-port"]);
  });
});

// As the reference: a file that is meant for another version must not stop the node's Services.
describe("goes on, and says so, where a file has", () => {
  const cases: [what: string, fields: string, warning: string][] = [
    ["a field that nobody knows", "modes: x", 'modes is not a known field (did you mean "mode"?)'],
    ["one inside a group", "iptables: {foo: [1]}", "iptables.foo is not a known field"],
    ["a field with another case", "Mode: nftables", 'Mode is not a known field (did you mean "mode"?)'],
    [
      "a key twice",
      "mode: nftables\nmode: iptables\n",
      "Map keys must be unique at line 4, column 1; the last one counts",
    ],
  ];
  test.each(cases)("%s", (_, fields, warning) => {
    const { proxy, warnings } = proxyWith(`${fields}\noomScoreAdj: -1`);
    expect(warnings).toEqual([`/etc/p.yaml: ${warning}`]);
    expect(proxy.config).toMatchObject({ mode: "iptables", oomScoreAdj: -1 });
  });

  test("but not where the known ones are wrong, too", () => {
    expect(problemsOf(() => proxyWith("foo: 1\noomScoreAdj: x"))).toEqual([
      '/etc/p.yaml: oomScoreAdj must be a whole number, not "x"',
    ]);
  });
});

test("an empty word on the command line is none", () => {
  const { config } = proxyCommand(["--proxy-mode=", "--detect-local-mode="]).proxy;
  expect(config).toMatchObject({ mode: "iptables", detectLocalMode: "ClusterCIDR" });
});

describe("refuses", () => {
  const cases: [fields: string, line: string][] = [
    ["mode: ipvs", "mode ipvs is not supported yet; leave it empty, or use iptables or nftables"],
    ["mode: userspace", 'mode must be one of iptables, ipvs, nftables, not "userspace"'],
    ["iptables: {masqueradeBit: 32}", "iptables.masqueradeBit must be from 0 to 31, not 32"],
    ["iptables: {syncPeriod: -1s}", 'iptables.syncPeriod must be 1ns or more, not "-1s"'],
    ["iptables: {syncPeriod: 1s, minSyncPeriod: 2s}", "iptables.minSyncPeriod must be at most iptables.syncPeriod"],
    ["nftables: {syncPeriod: 1s, minSyncPeriod: 2s}", "nftables.minSyncPeriod must be at most nftables.syncPeriod"],
    ["oomScoreAdj: 2000", "oomScoreAdj must be from -1000 to 1000, not 2000"],
    ["conntrack: {maxPerCore: -1}", "conntrack.maxPerCore must be 0 or more, not -1"],
    ["conntrack: {udpTimeout: -1s}", 'conntrack.udpTimeout must be 0s or more, not "-1s"'],
    ["bindAddress: node", 'bindAddress must be an IP address, not "node"'],
    ["healthzBindAddress: 'node:1'", 'healthzBindAddress must be address:port, not "node:1"'],
    ["metricsBindAddress: '1.2.3.4:0'", 'metricsBindAddress must be address:port, not "1.2.3.4:0"'],
    ["nodePortAddresses: [primary, 10.0.0.0/8]", "nodePortAddresses[0] must have nothing beside primary"],
    ["nodePortAddresses: [10.0.0.0/33]", 'nodePortAddresses[0] must be a CIDR or primary, not "10.0.0.0/33"'],
    [
      "clusterCIDR: 10.0.0.0/8,10.1.0.0/16",
      'clusterCIDR must be one CIDR, or one IPv4 and one IPv6 CIDR with a comma between, not "10.0.0.0/8,10.1.0.0/16"',
    ],
    [
      "detectLocalMode: BridgeInterface",
      "detectLocal.bridgeInterface must be set when detectLocalMode is BridgeInterface",
    ],
    [
      "detectLocalMode: InterfaceNamePrefix",
      "detectLocal.interfaceNamePrefix must be set when detectLocalMode is InterfaceNamePrefix",
    ],
    ["featureGates: {Nonsense: true}", "featureGates.Nonsense is not a known feature gate"],
    ["clientConnection: {burst: -1}", "clientConnection.burst must be 0 or more, not -1"],
  ];
  test.each(cases)("%s", (fields, line) => {
    expect(problemsOf(() => proxyWith(fields))).toEqual([`/etc/p.yaml: ${line}`]);
  });

  test("--metrics-port=0, as the reference does", () => {
    expect(problemsOf(() => proxyCommand(["--metrics-port=0"]))).toEqual([
      'configuration: metricsBindAddress must be address:port, not ""',
    ]);
  });
});

test("--cleanup needs no mode that works", () => {
  expect(proxyWith("mode: ipvs", ["--cleanup"])).toMatchObject({ cleanup: true, initOnly: false });
});

test("actions", () => {
  expect(proxyCommand(["--cleanup"])).toMatchObject({ cleanup: true, initOnly: false });
  expect(proxyCommand(["--init-only"])).toMatchObject({ cleanup: false, initOnly: true });
});

test("--masquerade-all counts in any mode", () => {
  const { config } = proxyCommand(["--masquerade-all"]).proxy;
  expect([config.iptables.masqueradeAll, config.nftables.masqueradeAll]).toEqual([true, true]);
});

test("periods on the command line count in the nftables mode, too", () => {
  const { config } = proxyCommand(["--iptables-sync-period=10s", "--iptables-min-sync-period=2s"]).proxy;
  expect(config.nftables).toMatchObject({ syncPeriod: 10_000, minSyncPeriod: 2_000 });
});

describe("beside the kubelet", () => {
  const run = (proxyFields: string) =>
    runCommand(["--kubeconfig=/k", "--hostname-override=n1", "--proxy-config=/p"], {
      files: { "/p": proxyHead + proxyFields },
    });

  test("the proxy uses the kubelet's name and access when its file names none", () => {
    expect(run("").proxy?.config).toMatchObject({ hostnameOverride: "n1", clientConnection: { kubeconfig: "/k" } });
    expect(run("clientConnection: {kubeconfig: /p}").proxy?.config.clientConnection.kubeconfig).toBe("/p");
  });

  test("its problems and warnings name its file", () => {
    expect(run("ipvs: {strictARP: true}").warnings).toEqual([
      "/p: ipvs.strictARP is not supported yet and has no effect",
    ]);
    expect(problemsOf(() => run("mode: ipvs"))).toEqual([
      "/p: mode ipvs is not supported yet; leave it empty, or use iptables or nftables",
    ]);
  });

  test("without --proxy-config there is no proxy", () => {
    expect(runCommand(["--kubeconfig=/k"]).proxy).toBeUndefined();
  });
});

describe("hidden metrics", () => {
  test("may be shown for the previous minor version only", () => {
    expect(proxyWith("showHiddenMetricsForVersion: '1.35'").warnings).toEqual([]);
    for (const version of ["1.34", "1.36", "v1.35", "all"]) {
      expect(problemsOf(() => proxyWith(`showHiddenMetricsForVersion: '${version}'`))).toEqual([
        `/etc/p.yaml: showHiddenMetricsForVersion must be omitted or 1.35, not "${version}"`,
      ]);
    }
  });
});
