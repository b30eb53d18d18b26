import { describe, expect, test } from "vitest";
import { stringify } from "yaml";
import { kubeletFields } from "../../../agent/config/kubelet-config.ts";
import { kubeletConfigz } from "../../../agent/config/load-kubelet.ts";
import { encodeTable, withDefaults } from "../../../agent/config/schema.ts";
import { type FakeHost, fixture, kubeletHead, kubeletWith, problemsOf, runCommand } from "./support.ts";

describe("configurations of the field", () => {
  test("kubeadm's is read; warnings name only what is not there yet", () => {
    const files = { "/var/lib/kubelet/config.yaml": fixture("kubeadm-kubelet.yaml") };
    const { kubelet, warnings } = runCommand(["--config=/var/lib/kubelet/config.yaml"], { files });
    expect(kubelet.config).toMatchObject({
      cgroupDriver: "systemd",
      clusterDNS: ["10.96.0.10"],
      clusterDomain: "cluster.local",
      containerRuntimeEndpoint: "unix:///var/run/containerd/containerd.sock",
      resolvConf: "/run/systemd/resolve/resolv.conf",
      cgroupRoot: "/",
      syncFrequency: 60_000,
      nodeStatusUpdateFrequency: 10_000,
      nodeStatusReportFrequency: 300_000,
      runtimeRequestTimeout: 120_000,
      crashLoopBackOff: { maxContainerRestartPeriod: 300_000 },
      evictionHard: { "memory.available": "100Mi", "nodefs.available": "10%" },
      authentication: { anonymous: { enabled: false }, webhook: { enabled: true, cacheTTL: 120_000 } },
      logging: { flushFrequency: 5000, verbosity: 0, format: "text" },
    });
    expect(warnings).toEqual([]);
  });

  test("kind's is read with its flags, and switching off what is not there is no warning", () => {
    const { kubelet, warnings } = runCommand(
      [
        "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf",
        "--kubeconfig=/etc/kubernetes/kubelet.conf",
        "--config=/var/lib/kubelet/config.yaml",
        "--node-ip=172.18.0.2",
        "--node-labels=ingress-ready=true",
        "--provider-id=kind://docker/kind/kind-control-plane",
        "--runtime-cgroups=/system.slice/containerd.service",
      ],
      { files: { "/var/lib/kubelet/config.yaml": fixture("kind-kubelet.yaml") } },
    );
    expect(kubelet.flags).toMatchObject({
      kubeconfig: "/etc/kubernetes/kubelet.conf",
      nodeIP: ["172.18.0.2"],
      nodeLabels: { "ingress-ready": "true" },
      rootDir: "/var/lib/kubelet",
    });
    expect(kubelet.config).toMatchObject({
      cgroupRoot: "/kubelet",
      failSwapOn: false,
      providerID: "kind://docker/kind/kind-control-plane",
      evictionHard: { "imagefs.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%" },
    });
    expect(warnings.join("\n")).not.toMatch(/failSwapOn|imageGC|evictionHard|deprecated/);
    expect(warnings.join("\n")).not.toContain("--runtime-cgroups");
  });
});

describe("defaults", () => {
  test("survive being written and read again", () => {
    const defaults = withDefaults(kubeletFields, {});
    const { config } = kubeletWith(stringify(encodeTable(kubeletFields, defaults))).kubelet;
    expect(config).toEqual({ ...defaults, cgroupRoot: "/" });
  });

  test("without a file they are the old ones, without eviction", () => {
    const { kubelet, warnings } = runCommand(["--kubeconfig=/k"]);
    expect(kubelet.config).toMatchObject({
      authentication: { anonymous: { enabled: true }, webhook: { enabled: false } },
      authorization: { mode: "AlwaysAllow" },
      readOnlyPort: 10255,
      evictionHard: {},
    });
    expect(warnings).toEqual([]);
  });

  const cases: { name: string; fields: string; want: object }[] = [
    { name: "zero durations", fields: "syncFrequency: 0s\nvolumeStatsAggPeriod: 0s", want: { syncFrequency: 60_000 } },
    { name: "empty words", fields: 'cgroupDriver: ""\npodLogsDir: ""', want: { podLogsDir: "/var/log/pods" } },
    { name: "zero counts", fields: "maxPods: 0\nport: 0\nkubeAPIBurst: 0", want: { maxPods: 110, port: 10250 } },
    { name: "nulls", fields: "maxPods: null\nclusterDNS: null\nlogging: null", want: { maxPods: 110, clusterDNS: [] } },
    {
      name: "zero rates stay",
      fields: "registryPullQPS: 0\nkubeAPIQPS: 0",
      want: { registryPullQPS: 0, kubeAPIQPS: 0 },
    },
    { name: "no resolvConf stays", fields: 'resolvConf: ""', want: { resolvConf: "" } },
    { name: "no eviction stays", fields: "evictionHard: {}", want: { evictionHard: {} } },
    {
      name: "a status interval is the report interval",
      fields: "nodeStatusUpdateFrequency: 4s",
      want: { nodeStatusReportFrequency: 4000 },
    },
    {
      name: "unless that is set",
      fields: "nodeStatusUpdateFrequency: 4s\nnodeStatusReportFrequency: 1m",
      want: { nodeStatusReportFrequency: 60_000 },
    },
    { name: "parallel pulls", fields: "maxParallelImagePulls: 2", want: { serializeImagePulls: false } },
    { name: "one parallel pull", fields: "maxParallelImagePulls: 1", want: { serializeImagePulls: true } },
    {
      name: "default thresholds on demand",
      fields: 'mergeDefaultEvictionSettings: true\nevictionHard: {memory.available: "1Gi"}',
      want: { evictionHard: { "memory.available": "1Gi", "nodefs.available": "10%", "imagefs.inodesFree": "5%" } },
    },
    {
      name: "reserved CPUs count as system-reserved",
      fields: 'reservedSystemCPUs: 0,2-3\nkubeReserved: {cpu: "1", memory: 1Gi}',
      want: { systemReserved: { cpu: "3" }, kubeReserved: { memory: "1Gi" } },
    },
    {
      name: "YAML 1.1 words",
      fields: "failSwapOn: no\nclusterDomain: 'no'",
      want: { failSwapOn: false, clusterDomain: "no" },
    },
  ];
  test.each(cases)("$name", ({ fields, want }) => {
    const { config } = kubeletWith(fields).kubelet;
    expect(config).toMatchObject(want);
  });
});

describe("files", () => {
  test("paths in them start at their directory", () => {
    const { config } = kubeletWith(
      "resolvConf: resolv.conf\ntlsCertFile: ../tls.crt\ntlsPrivateKeyFile: /k\nstaticPodPath: /abs",
    ).kubelet;
    expect(config).toMatchObject({ resolvConf: "/etc/resolv.conf", tlsCertFile: "/tls.crt", staticPodPath: "/abs" });
  });

  test("may be JSON", () => {
    const json = JSON.stringify({
      apiVersion: "kubelet.config.k8s.io/v1beta1",
      kind: "KubeletConfiguration",
      maxPods: 7,
    });
    expect(runCommand(["--config=/k.json"], { files: { "/k.json": json } }).kubelet.config.maxPods).toBe(7);
  });

  const refused: { name: string; text: string | undefined; line: string | RegExp }[] = [
    { name: "a missing one", text: undefined, line: /^\/k: cannot be read: ENOENT/ },
    { name: "an empty one", text: "", line: "/k: is empty" },
    { name: "one of comments", text: "# nothing\n---\n", line: "/k: is empty" },
    { name: "two documents", text: `${kubeletHead}---\n${kubeletHead}`, line: "/k: must hold one document, not 2" },
    { name: "a list", text: "- a", line: '/k: must be an object with fields, not ["a"]' },
    { name: "broken YAML", text: `${kubeletHead}a: [`, line: /^\/k: is not valid YAML: .* at line 3, column 5$/ },
    {
      name: "a key twice",
      text: `${kubeletHead}port: 1\nport: 2`,
      line: /^\/k: is not valid YAML: Map keys must be unique at line 4/,
    },
    { name: "an unknown anchor", text: `${kubeletHead}port: *a`, line: /^\/k: is not valid YAML: Unresolved alias/ },
    {
      name: "another kind",
      text: "apiVersion: v1\nkind: Pod",
      line: '/k: must be apiVersion kubelet.config.k8s.io/v1beta1, kind KubeletConfiguration, not "v1", "Pod"',
    },
    {
      name: "no kind",
      text: "maxPods: 1",
      line: "/k: must be apiVersion kubelet.config.k8s.io/v1beta1, kind KubeletConfiguration, not undefined, undefined",
    },
  ];
  test.each(refused)("refuses $name", ({ text, line }) => {
    const lines = problemsOf(() => runCommand(["--config=/k"], { files: text === undefined ? {} : { "/k": text } }));
    expect(lines).toEqual([typeof line === "string" ? line : expect.stringMatching(line)]);
  });
});

describe("fields", () => {
  const refused: [fields: string, ...lines: string[]][] = [
    ["maxPod: 7", 'maxPod is not a known field (did you mean "maxPods"?)'],
    ["authentication: {webhok: {}}", 'authentication.webhok is not a known field (did you mean "webhook"?)'],
    ["zzz: 1", "zzz is not a known field"],
    ["MaxPods: 7", 'MaxPods is not a known field (did you mean "maxPods"?)'],
    ["__proto__: 1", "__proto__ is not a known field"],
    ["maxPods: many", 'maxPods must be a whole number, not "many"'],
    ['maxPods: "110"', 'maxPods must be a whole number, not "110"'],
    ["maxPods: 1.5", "maxPods must be a whole number, not 1.5"],
    ["maxPods: -1", "maxPods must be 0 or more, not -1"],
    ["port: 70000", "port must be from 1 to 65535, not 70000"],
    ["failSwapOn: 1", "failSwapOn must be true or false, not 1"],
    ["syncFrequency: 60", 'syncFrequency must be a duration such as "1m30s", not 60'],
    ["syncFrequency: 1 min", 'syncFrequency must be a duration such as "1m30s", not "1 min"'],
    ["cpuCFSQuotaPeriod: 2s", 'cpuCFSQuotaPeriod must be from 1ms to 1s, not "2s"'],
    [
      "crashLoopBackOff: {maxContainerRestartPeriod: 10m}",
      'crashLoopBackOff.maxContainerRestartPeriod must be from 1s to 5m0s, not "10m"',
    ],
    ["cgroupDriver: runc", 'cgroupDriver must be one of cgroupfs, systemd, not "runc"'],
    ["clusterDomain: 1", "clusterDomain must be a string, not 1"],
    ["clusterDNS: 10.0.0.10", 'clusterDNS must be a list, not "10.0.0.10"'],
    ["clusterDNS: [10.0.0.10, dns]", 'clusterDNS[1] must be an IP address, not "dns"'],
    ["authentication: []", "authentication must be an object with fields, not []"],
    ["systemReserved: {cpu: 2}", "systemReserved.cpu must be a string, not 2"],
    [
      "systemReserved: {cpu: '-2'}",
      'systemReserved.cpu must be a quantity such as "500m" or "1Gi", 0 or more, not "-2"',
    ],
    ["kubeReserved: {gpu: '2'}", "kubeReserved.gpu is not known; allowed are cpu, memory, ephemeral-storage, pid"],
    [
      "evictionHard: {memory.available: some}",
      'evictionHard.memory.available must be like "100Mi" or "10%", not "some"',
    ],
    [
      "evictionHard: {memory.available: 101%}",
      'evictionHard.memory.available must be like "100Mi" or "10%", not "101%"',
    ],
    [
      "containerLogMaxSize: huge",
      'containerLogMaxSize must be a quantity in quotes such as "500m" or "1Gi", not "huge"',
    ],
    ["registerWithTaints: [{key: a}]", "registerWithTaints[0].effect must be set"],
    [
      "registerWithTaints: [{key: a, effect: Never}]",
      'registerWithTaints[0].effect must be one of NoSchedule, PreferNoSchedule, NoExecute, not "Never"',
    ],
    [
      "registerWithTaints: [a]",
      'registerWithTaints[0] must be an object with fields, not "a"',
      "registerWithTaints[0].key must be set",
      "registerWithTaints[0].effect must be set",
    ],
    ["featureGates: {NodeSwap: 1}", "featureGates.NodeSwap must be true or false, not 1"],
    [
      "staticPodURLHeader: {Authorization: Bearer hunter2}",
      "staticPodURLHeader.Authorization must be a list (its value is not shown)",
    ],
    [
      "maxPods: x\nport: z",
      'maxPods must be a whole number, not "x"',
      '/etc/k.yaml: port must be a whole number, not "z"',
    ],
  ];
  test.each(refused)("refuses %s", (fields, first, ...more) => {
    expect(problemsOf(() => kubeletWith(fields))).toEqual([
      `/etc/k.yaml: ${first}`,
      ...more.map((line) => (line.startsWith("/") ? line : `/etc/k.yaml: ${line}`)),
    ]);
  });

  test("a file full of nonsense gives ten lines", () => {
    const lines = problemsOf(() => kubeletWith(Array.from({ length: 30 }, (_, i) => `zzz${i}: 1`).join("\n")));
    expect(lines).toHaveLength(11);
    expect(lines.at(-1)).toBe("… and 20 more problems");
  });

  test("structured ones are read", () => {
    const { config } = kubeletWith(`
registerWithTaints: [{key: a, value: b, effect: NoSchedule}, {key: c, effect: NoExecute}]
reservedMemory: [{numaNode: 0, limits: {memory: 1Gi, hugepages-2Mi: 4194304}}]
logging: {flushFrequency: 5000000000, vmodule: [{filePattern: "pod*", verbosity: 4}], options: {json: {infoBufferSize: 4096}}}
shutdownGracePeriodByPodPriority: [{priority: 100, shutdownGracePeriodSeconds: 30}]
evictionSoft: {memory.available: 1Gi}
evictionSoftGracePeriod: {memory.available: 1m30s}
staticPodURLHeader: {X: [a, b]}
tracing: {samplingRatePerMillion: 100}
`).kubelet;
    expect(config).toMatchObject({
      registerWithTaints: [
        { key: "a", value: "b", effect: "NoSchedule" },
        { key: "c", value: "", effect: "NoExecute" },
      ],
      reservedMemory: [{ numaNode: 0, limits: { memory: "1Gi", "hugepages-2Mi": "4194304" } }],
      logging: {
        flushFrequency: 5000,
        vmodule: [{ filePattern: "pod*", verbosity: 4 }],
        options: { json: { infoBufferSize: "4096" } },
      },
      shutdownGracePeriodByPodPriority: [{ priority: 100, shutdownGracePeriodSeconds: 30 }],
      evictionSoftGracePeriod: { "memory.available": 90_000 },
      staticPodURLHeader: { X: ["a", "b"] },
      tracing: { samplingRatePerMillion: 100 },
    });
  });
});

describe("precedence", () => {
  function load(dropIns: Record<string, string>, args: string[] = [], main = "") {
    const files: FakeHost["files"] = { "/etc/k.yaml": kubeletHead + main };
    for (const [name, text] of Object.entries(dropIns)) files[`/conf.d/${name}`] = kubeletHead + text;
    return runCommand(["--config=/etc/k.yaml", "--config-dir=/conf.d", ...args], { files });
  }

  test("a later drop-in wins over an earlier one, a flag over both", () => {
    const dropIns = { "20-b.conf": "maxPods: 20\npodsPerCore: 2", "10-a.conf": "maxPods: 10\npodPidsLimit: 100" };
    expect(load(dropIns, [], "maxPods: 5").kubelet.config).toMatchObject({
      maxPods: 20,
      podsPerCore: 2,
      podPidsLimit: 100,
    });
    expect(load(dropIns, ["--max-pods=30"]).kubelet.config).toMatchObject({ maxPods: 30, podsPerCore: 2 });
  });

  test("maps merge by key, lists are replaced, null takes back", () => {
    const main =
      'evictionHard: {memory.available: 1Gi, nodefs.available: "5%"}\nclusterDNS: [10.0.0.1]\nmaxPods: 9\nproviderID: a';
    const { config } = load(
      {
        "a.conf":
          "evictionHard: {memory.available: 2Gi}\nclusterDNS: [10.0.0.2, 10.0.0.3]\nmaxPods: null\nproviderID: ''",
      },
      [],
      main,
    ).kubelet;
    expect(config).toMatchObject({
      evictionHard: { "memory.available": "2Gi", "nodefs.available": "5%" },
      clusterDNS: ["10.0.0.2", "10.0.0.3"],
      maxPods: 110,
      providerID: "",
    });
  });

  test("a drop-in's thresholds merge with the defaults that a file without thresholds has", () => {
    const { config } = load({ "a.conf": "evictionHard: {memory.available: 2Gi}" }).kubelet;
    expect(config.evictionHard).toMatchObject({ "memory.available": "2Gi", "nodefs.available": "10%" });
  });

  test("a map flag replaces the map, but feature gates merge", () => {
    const { config } = load(
      {},
      ["--config-dir=", "--system-reserved=memory=1Gi", "--feature-gates=MemoryQoS=false,EventedPLEG=true"],
      "systemReserved: {cpu: 100m}\nfeatureGates: {MemoryQoS: true, PodsAPI: true}",
    ).kubelet;
    expect(config.systemReserved).toEqual({ memory: "1Gi" });
    expect(config.featureGates).toEqual({ MemoryQoS: false, EventedPLEG: true, PodsAPI: true });
  });

  test("a flag may say zero", () => {
    expect(kubeletWith("", ["--max-pods=0", "--healthz-port=0"]).kubelet.config).toMatchObject({
      maxPods: 0,
      healthzPort: 0,
    });
  });

  test("seccompDefault holds if file or flag says so", () => {
    expect(kubeletWith("seccompDefault: true", ["--seccomp-default=false"]).kubelet.config.seccompDefault).toBe(true);
    expect(kubeletWith("", ["--seccomp-default"]).kubelet.config.seccompDefault).toBe(true);
  });

  test("only *.conf files are drop-ins, in directories below too; others are named", () => {
    const { kubelet, warnings } = load({ "a.conf.bak": "maxPods: 1", "sub/b.conf": "maxPods: 2" });
    expect(kubelet.config.maxPods).toBe(2);
    expect(warnings).toEqual(["/conf.d/a.conf.bak: skipped, because its name does not end in .conf"]);
  });

  test("a drop-in's problem names it", () => {
    expect(problemsOf(() => load({ "a.conf": "maxPods: x" }))).toEqual([
      '/conf.d/a.conf: maxPods must be a whole number, not "x"',
    ]);
    expect(problemsOf(() => load({ "a.conf": "imageGCLowThresholdPercent: 90" }))).toEqual([
      "/conf.d/a.conf: imageGCLowThresholdPercent must be less than imageGCHighThresholdPercent (85), not 90",
    ]);
    expect(problemsOf(() => runCommand(["--config-dir=/none"]))).toEqual([
      expect.stringMatching(/^--config-dir: \/none cannot be read: ENOENT/),
    ]);
  });
});

describe("warnings", () => {
  const warned: [fields: string, args: string[], ...lines: string[]][] = [
    ["volumePluginDir: /m", [], "/etc/k.yaml: volumePluginDir is not supported yet and has no effect"],
    [
      "kubeletCgroups: /agent",
      [],
      "/etc/k.yaml: kubeletCgroups: statistics show this cgroup as the kubelet's, but the agent does not move into it",
    ],
    [
      "systemCgroups: /system\ncgroupRoot: /",
      [],
      "/etc/k.yaml: systemCgroups: statistics show this cgroup as the system's, but no process is moved into it",
    ],
    ["", ["--lock-file=/l"], "--lock-file is not supported yet and has no effect"],
    ["featureGates: {PodsAPI: true}", [], "featureGates.PodsAPI is not supported yet and has no effect"],
    ["featureGates: {PodsAPI: false, ImageVolumeWithDigest: true}", []],
    [
      "evictionHard: {memory.available: 1Gi}",
      [],
      "/etc/k.yaml: evictionHard: it lowers allocatable, but pods are not evicted yet",
    ],
    [
      "",
      ["--max-pods=5", "--fail-swap-on", "--provider-id=x", "-v=2"],
      "deprecated flags, better set in the --config file: --max-pods (maxPods), --fail-swap-on (failSwapOn)",
    ],
    ["staticPodPath: ''\nhealthzPort: 10248\nfailSwapOn: false\nhairpinMode: none", []],
    ["", ["--containerd=/c", "--boot-id-file=/b"]],
  ];
  test.each(warned)("%s %j", (fields, args, ...lines) => {
    expect(kubeletWith(fields, args).warnings).toEqual(lines);
  });
});

test("/configz shows the configuration as a file would, but no secrets", () => {
  const { config } = kubeletWith("staticPodURLHeader: {Authorization: [Bearer hunter2]}\nmaxPods: 7").kubelet;
  const { kubeletconfig } = kubeletConfigz(config);
  expect(kubeletconfig).toMatchObject({ kind: "KubeletConfiguration", apiVersion: "kubelet.config.k8s.io/v1beta1" });
  expect(kubeletconfig).toMatchObject({ maxPods: 7, syncFrequency: "1m0s", logging: { flushFrequency: "5s" } });
  expect(JSON.stringify(kubeletconfig)).not.toContain("hunter2");
});
