import { describe, expect, test } from "vitest";
import type { Container, Pod, PodSpec, Volume, VolumeMount } from "../../../agent/kube/types.ts";
import { parseMountinfo } from "../../../agent/lib/mount.ts";
import { nestedMountPoints } from "../../../agent/volumes/config-volume.ts";
import { downwardAPIFiles } from "../../../agent/volumes/downward-api.ts";
import { hugePageSize, memoryVolumeBytes } from "../../../agent/volumes/empty-dir.ts";
import { kindTable } from "../../../agent/volumes/kinds.ts";
import { buildMount } from "../../../agent/volumes/mounts.ts";
import { commonUser } from "../../../agent/volumes/identity-files.ts";
import { configMapFiles, secretFiles, selectKeys } from "../../../agent/volumes/object-files.ts";
import { createProjectedKind } from "../../../agent/volumes/projected.ts";
import { subPathOf } from "../../../agent/volumes/sub-path.ts";
import { releaseHasNoswap } from "../../../agent/volumes/tmpfs-probe.ts";
import { base64, makePod } from "./support.ts";

const GiB = 1024 ** 3;
const limited = (memory: string): Container => ({ name: memory, resources: { limits: { memory } } });

const { kindOf } = kindTable();

describe("kindOf", () => {
  test.each([
    [{ name: "v", emptyDir: {} }, "kubernetes.io/empty-dir"],
    [{ name: "v" }, "kubernetes.io/empty-dir"],
    [{ name: "v", emptyDir: null, hostPath: { path: "/x" } }, "kubernetes.io/host-path"],
    [{ name: "v", projected: {} }, "kubernetes.io/projected"],
    [{ name: "v", image: { reference: "a" } }, "kubernetes.io/image"],
  ])("%o is %s", (volume, plugin) => expect(kindOf(volume as Volume).pluginName).toBe(plugin));

  test.each(["persistentVolumeClaim", "csi", "ephemeral"])("%s is refused by name", (kind) => {
    expect(() => kindOf({ name: "v", [kind]: {} })).toThrow(`volume kind ${kind} is not supported by nodelet`);
  });
});

test("isOwnDirName: what only we write into, with the projected kind of this node among it", () => {
  const kinds = kindTable([createProjectedKind({}), { ...kindOf({ name: "v" }), field: "csi", pluginName: "a/csi" }]);
  const names = ["empty-dir", "configmap", "secret", "downward-api", "projected", "nfs", "local-volume", "csi"];
  const own = names.filter((name) => kinds.isOwnDirName(`kubernetes.io~${name}`));
  expect(own).toEqual(["empty-dir", "configmap", "secret", "downward-api", "projected"]);
  expect(kinds.isOwnDirName("a~csi")).toBe(false);
});

describe("memoryVolumeBytes", () => {
  const node = { memory: "8Gi" };
  test.each([
    { name: "BestEffort: the node's", spec: {}, limit: undefined, want: 8 * GiB },
    { name: "sizeLimit below", spec: {}, limit: "1Gi", want: GiB },
    { name: "sizeLimit above the node's", spec: {}, limit: "16Gi", want: 8 * GiB },
    {
      name: "all containers limited: their sum",
      spec: { containers: [limited("1Gi"), limited("2Gi")] },
      limit: undefined,
      want: 3 * GiB,
    },
    {
      name: "one is not: no pod limit",
      spec: { containers: [limited("1Gi"), { name: "b" }] },
      limit: undefined,
      want: 8 * GiB,
    },
    {
      name: "pod-level limit",
      spec: { resources: { limits: { memory: "2Gi" } } },
      limit: undefined,
      want: 2 * GiB,
    },
  ] as { name: string; spec: Partial<PodSpec>; limit: string | undefined; want: number }[])(
    "$name",
    ({ spec, limit, want }) => {
      expect(memoryVolumeBytes(makePod(spec), limit, node)).toBe(want);
    },
  );

  test("nothing known: no limit", () => expect(memoryVolumeBytes(makePod({}), undefined, {})).toBe(0));
});

describe("hugePageSize", () => {
  const pod = (...sizes: string[]) =>
    makePod({
      containers: sizes.map((size) => ({ name: size, resources: { requests: { [`hugepages-${size}`]: "2Mi" } } })),
    });
  test.each([
    [pod("2Mi"), "HugePages", "2Mi"],
    [pod("2Mi", "1Gi"), "HugePages-1Gi", "1Gi"],
    [pod("2Mi"), "HugePages-2048Ki", "2048Ki"],
  ])("%# %s", (from, medium, want) => expect(hugePageSize(from, medium)).toBe(want));
  test.each([
    [pod(), "HugePages", "no container requests"],
    [pod("2Mi", "1Gi"), "HugePages", "several page sizes"],
    [pod("2Mi"), "HugePages-1Gi", "no container requests hugepages-1Gi"],
  ])("%# %s: %s", (from, medium, why) => expect(() => hugePageSize(from, medium)).toThrow(why));
});

test("releaseHasNoswap", () => {
  const cases: [string, boolean][] = [
    ["6.1.0-38-amd64", false],
    ["6.4.0", true],
    ["6.18.44-x", true],
    ["5.15.0", false],
    ["7.0", true],
    ["strange", false],
  ];
  expect(cases.map(([release]) => [release, releaseHasNoswap(release)])).toEqual(cases);
});

describe("selectKeys", () => {
  const files = configMapFiles({
    metadata: { name: "m" },
    data: { a: "text", both: "text" },
    binaryData: { both: base64("binary"), bin: base64("\0\x01") },
  });
  const options = { defaultMode: 0o644, optional: false, what: "config" as const };
  const texts = (payload: ReadonlyMap<string, { data: Uint8Array; mode: number }>) =>
    Object.fromEntries(
      [...payload].map(([path, { data, mode }]) => [path, `${Buffer.from(data).toString()} ${mode.toString(8)}`]),
    );

  test("all keys; binary data wins", () => {
    expect(texts(selectKeys(files, { ...options, items: undefined }))).toEqual({
      a: "text 644",
      both: "binary 644",
      bin: "\0\x01 644",
    });
  });
  test("items choose, rename and set modes", () => {
    const items = [{ key: "a", path: "dir/x", mode: 0o400 }];
    expect(texts(selectKeys(files, { ...options, items }))).toEqual({ "dir/x": "text 400" });
  });
  test("a missing item is an error, unless optional", () => {
    const items = [{ key: "nope", path: "x" }];
    expect(() => selectKeys(files, { ...options, items })).toThrow("references non-existent config key: nope");
    expect(selectKeys(files, { ...options, items, optional: true }).size).toBe(0);
  });
  test("secrets are decoded", () => {
    expect(secretFiles({ metadata: { name: "s" }, data: { k: base64("v") } }).get("k")).toEqual(Buffer.from("v"));
  });
});

describe("downwardAPIFiles", () => {
  const pod = makePod({ containers: [limited("1Gi")] }, { labels: { a: "1" } });
  test("fields and resources, with modes", () => {
    const items = [
      { path: "labels", fieldRef: { fieldPath: "metadata.labels" } },
      {
        path: "mem",
        mode: 0o400,
        resourceFieldRef: { containerName: "1Gi", resource: "limits.memory", divisor: "1Mi" },
      },
      { path: "cpu", resourceFieldRef: { containerName: "1Gi", resource: "limits.cpu" } },
    ];
    const files = downwardAPIFiles(pod, items, 0o644, { cpu: "3" });
    const got = [...files].map(([path, { data, mode }]) => [path, Buffer.from(data).toString(), mode]);
    expect(got).toEqual([
      ["labels", 'a="1"', 0o644],
      ["mem", "1024", 0o400],
      ["cpu", "3", 0o644],
    ]);
  });
  test("what changes too often to be a file is refused", () => {
    const items = [{ path: "ip", fieldRef: { fieldPath: "status.podIP" } }];
    expect(() => downwardAPIFiles(pod, items, 0o644, {})).toThrow('unsupported fieldPath "status.podIP"');
  });
});

describe("nestedMountPoints", () => {
  const pod = (...paths: [string, string][]): Pod =>
    makePod({ containers: [{ name: "app", volumeMounts: paths.map(([name, mountPath]) => ({ name, mountPath })) }] });
  test.each([
    { name: "none", pod: pod(["v", "/etc/v"], ["w", "/etc/w"]), want: [] },
    { name: "one beneath", pod: pod(["v", "/etc/v"], ["w", "/etc/v/sub"]), want: ["sub"] },
    {
      name: "only the outermost",
      pod: pod(["v", "/v"], ["w", "/v/a"], ["x", "/v/a/b"], ["y", "/v/c"]),
      want: ["a", "c"],
    },
    { name: "a name that merely begins alike", pod: pod(["v", "/v"], ["w", "/v/..a"], ["x", "/va"]), want: ["..a"] },
    { name: "untidy paths", pod: pod(["v", "/v/"], ["w", "/v//a/"]), want: ["a"] },
    { name: "at the root", pod: pod(["v", "/"], ["w", "/etc/w"], ["x", "/y"]), want: ["etc/w", "y"] },
    { name: "a volume within itself", pod: pod(["v", "/v"], ["v", "/v/a"], ["w", "/v/a/b"]), want: ["a", "b"] },
    { name: "two volumes at one place", pod: pod(["v", "/v"], ["w", "/v"], ["x", "/v/a"]), want: ["a"] },
    { name: "names that sort before a slash", pod: pod(["v", "/v"], ["w", "/v-1"], ["x", "/v/a"]), want: ["a"] },
    {
      name: "twenty thousand, which would be a minute's work pair by pair",
      pod: pod(...Array.from({ length: 20_000 }, (_, i): [string, string] => [i % 2 ? "v" : "w", `/v${i}/x`])),
      want: [],
    },
  ])("$name", ({ pod, want }) => expect(nestedMountPoints(pod, "v")).toEqual(want));
});

describe("commonUser", () => {
  const as = (user: number | undefined): Container =>
    user === undefined ? { name: "c" } : { name: `c${user}`, securityContext: { runAsUser: user } };
  test.each([
    { name: "nobody says", spec: { containers: [as(undefined)] }, want: undefined },
    { name: "the pod says", spec: { containers: [as(undefined)], securityContext: { runAsUser: 7 } }, want: 7 },
    { name: "all agree", spec: { containers: [as(5)], initContainers: [as(5)] }, want: 5 },
    { name: "one differs", spec: { containers: [as(5), as(6)] }, want: undefined },
    { name: "one does not say", spec: { containers: [as(5), as(undefined)] }, want: undefined },
  ])("$name", ({ spec, want }) => expect(commonUser(makePod(spec))).toBe(want));
});

describe("subPathOf", () => {
  const env = new Map([
    ["NAME", "web"],
    ["EMPTY", ""],
    ["UP", "../../etc"],
  ]);
  const mount = (more: Partial<VolumeMount>): VolumeMount => ({ name: "v", mountPath: "/v", ...more });
  test.each([
    [{}, undefined],
    [{ subPath: "a/b" }, "a/b"],
    [{ subPath: "a", subPathExpr: "$(NAME)/logs" }, "web/logs"],
    [{ subPathExpr: "$$(NAME)" }, "$(NAME)"],
  ])("%o → %s", (more, want) => expect(subPathOf(mount(more), env)).toBe(want));
  test.each([
    [{ subPath: "/etc" }, "must not be an absolute path"],
    [{ subPath: "a/../../etc" }, "must not contain '..'"],
    [{ subPathExpr: "$(UP)" }, "must not contain '..'"],
    [{ subPathExpr: "$(A)/$(NAME)/$(EMPTY)" }, "missing value for A, EMPTY"],
  ])("%o is refused", (more, why) => expect(() => subPathOf(mount(more), env)).toThrow(why));
});

describe("buildMount", () => {
  const volume = { isReadOnly: false, isRelabelled: true };
  const context = { podIPs: [], recursiveReadOnlySupported: true, userns: undefined, selinuxEnabled: false };
  const mount: VolumeMount = { name: "v", mountPath: "/data" };
  const plain = {
    containerPath: "/data",
    hostPath: "/h",
    readonly: false,
    selinuxRelabel: false,
    propagation: "PRIVATE",
    recursiveReadOnly: false,
  };
  test.each([
    { name: "plain", mount, volume, context, want: {} },
    { name: "relative path", mount: { ...mount, mountPath: "data/" }, volume, context, want: {} },
    { name: "read-only mount", mount: { ...mount, readOnly: true }, volume, context, want: { readonly: true } },
    { name: "read-only kind", mount, volume: { ...volume, isReadOnly: true }, context, want: { readonly: true } },
    { name: "SELinux", mount, volume, context: { ...context, selinuxEnabled: true }, want: { selinuxRelabel: true } },
    {
      name: "SELinux, not ours to label",
      mount,
      volume: { ...volume, isRelabelled: false },
      context: { ...context, selinuxEnabled: true },
      want: {},
    },
    {
      name: "propagation",
      mount: { ...mount, mountPropagation: "HostToContainer" },
      volume,
      context,
      want: { propagation: "HOST_TO_CONTAINER" },
    },
    {
      name: "recursive read-only",
      mount: { ...mount, readOnly: true, recursiveReadOnly: "Enabled" },
      volume,
      context,
      want: { readonly: true, recursiveReadOnly: true },
    },
    {
      name: "recursive read-only if possible, and it is not",
      mount: { ...mount, readOnly: true, recursiveReadOnly: "IfPossible" },
      volume,
      context: { ...context, recursiveReadOnlySupported: false },
      want: { readonly: true },
    },
    {
      name: "user namespace",
      mount,
      volume,
      context: { ...context, userns: { uids: [{ hostID: 1, containerID: 0, length: 2 }], gids: [] } },
      want: { uidMappings: [{ hostID: 1, containerID: 0, length: 2 }], gidMappings: [] },
    },
  ])("$name", ({ mount, volume, context, want }) => {
    expect(buildMount(mount as VolumeMount, volume, "/h", context as never)).toEqual({ ...plain, ...want });
  });

  test.each([
    [{ recursiveReadOnly: "Enabled" }, "needs readOnly: true"],
    [
      { recursiveReadOnly: "Enabled", readOnly: true, mountPropagation: "HostToContainer" },
      "needs mountPropagation None",
    ],
    [{ recursiveReadOnly: "Enabled", readOnly: true }, "is not supported by this pod's runtime handler"],
    [{ mountPropagation: "Sideways" }, 'unknown mountPropagation "Sideways"'],
  ])("%o is refused", (more, why) => {
    const unsupported = { ...context, recursiveReadOnlySupported: false };
    expect(() => buildMount({ ...mount, ...more } as VolumeMount, volume, "/h", unsupported)).toThrow(why);
  });
});

describe("parseMountinfo", () => {
  const text = [
    "22 27 0:21 / /proc rw,relatime - proc proc rw",
    "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw",
    "90 27 0:50 / /pods/a/vol\\040ume rw shared:5 master:2 - tmpfs tmpfs rw,size=1k",
    "91 27 254:0 /src /pods/a rw - ext4 /dev/vda rw",
    "92 27 254:0 /src /pods/ab rw - ext4 /dev/vda rw",
    "nonsense",
    "",
  ].join("\n");

  test("all", () =>
    expect(parseMountinfo(text).map(({ mountPoint }) => mountPoint)).toEqual([
      "/proc",
      "/",
      "/pods/a/vol ume",
      "/pods/a",
      "/pods/ab",
    ]));
  test("only at a directory and beneath it", () => {
    expect(parseMountinfo(text, "/pods/a")).toEqual([
      {
        mountPoint: "/pods/a/vol ume",
        root: "/",
        device: "0:50",
        fsType: "tmpfs",
        source: "tmpfs",
        options: ["rw", "size=1k"],
        isShared: true,
      },
      {
        mountPoint: "/pods/a",
        root: "/src",
        device: "254:0",
        fsType: "ext4",
        source: "/dev/vda",
        options: ["rw"],
        isShared: false,
      },
    ]);
  });
});
