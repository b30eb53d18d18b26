import { mkdir, mkdtemp, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { dockerMounts, hasRecursiveReadOnly, makeMissingSources } from "../../../../agent/runtime/docker/mounts.ts";
import type { DaemonInfo } from "../../../../agent/runtime/docker/daemon.ts";
import type { Mount } from "../../../../agent/runtime/port.ts";
import { context, daemonInfo, mount } from "./config-support.ts";

const what = "container app in pod shop/web";
const mapped = (mounts: Partial<Mount>[], daemon: Partial<DaemonInfo> = {}) =>
  dockerMounts(what, mounts.map(mount), context(daemon));
const engine28 = { apiVersion: "1.48", version: "28.0.0" };
const selinux = { securityOptions: ["name=seccomp,profile=default", "name=selinux"] };

function bind(change: object = {}, options: object = {}) {
  return { Type: "bind", Source: "/srv/data", Target: "/data", ReadOnly: false, BindOptions: options, ...change };
}

const cases: { name: string; mounts: Partial<Mount>[]; daemon?: Partial<DaemonInfo>; want: object }[] = [
  { name: "none", mounts: [], want: {} },
  { name: "a plain one", mounts: [{}], want: { Mounts: [bind()] } },
  {
    name: "propagation out of the node",
    mounts: [{ propagation: "HOST_TO_CONTAINER" }],
    want: { Mounts: [bind({}, { Propagation: "rslave" })] },
  },
  {
    name: "propagation both ways",
    mounts: [{ propagation: "BIDIRECTIONAL" }],
    want: { Mounts: [bind({}, { Propagation: "rshared" })] },
  },
  {
    name: "read-only, as an old daemon means it",
    mounts: [{ readonly: true }],
    want: { Mounts: [bind({ ReadOnly: true })] },
  },
  {
    name: "read-only, and a new daemon is told to leave submounts alone",
    mounts: [{ readonly: true }],
    daemon: engine28,
    want: { Mounts: [bind({ ReadOnly: true }, { ReadOnlyNonRecursive: true })] },
  },
  {
    name: "recursively read-only",
    mounts: [{ readonly: true, recursiveReadOnly: true }],
    daemon: engine28,
    want: { Mounts: [bind({ ReadOnly: true }, { ReadOnlyForceRecursive: true })] },
  },
  {
    name: "paths with colons, spaces and unneeded slashes",
    mounts: [{ hostPath: "/srv//a:b c/", containerPath: "/x/./y:z/" }],
    want: { Mounts: [bind({ Source: "/srv/a:b c", Target: "/x/y:z" })] },
  },
  {
    name: "Docker's data root and what contains it: Docker refuses any word for private there",
    mounts: [
      { hostPath: "/", containerPath: "/a" },
      { hostPath: "/var/lib/docker/containers", containerPath: "/b" },
    ],
    want: {
      Mounts: [bind({ Source: "/", Target: "/a" }), bind({ Source: "/var/lib/docker/containers", Target: "/b" })],
    },
  },
  {
    name: "of two mounts at one place the later one, which would cover the other; Docker refuses the pair",
    mounts: [
      { hostPath: "/1" },
      { hostPath: "/2", containerPath: "/data/sub" },
      { hostPath: "/3", containerPath: "/data/" },
    ],
    want: { Mounts: [bind({ Source: "/2", Target: "/data/sub" }), bind({ Source: "/3" })] },
  },
  { name: "SELinux's label where there is no SELinux", mounts: [{ selinuxRelabel: true }], want: { Mounts: [bind()] } },
  {
    name: "SELinux's label in the older form, beside others",
    mounts: [
      { selinuxRelabel: true },
      { selinuxRelabel: true, containerPath: "/ro", readonly: true, propagation: "HOST_TO_CONTAINER" },
      { containerPath: "/host" },
    ],
    daemon: selinux,
    want: { Mounts: [bind({ Target: "/host" })], Binds: ["/srv/data:/data:Z", "/srv/data:/ro:Z,ro,rslave"] },
  },
];
for (const { name, mounts, daemon = {}, want } of cases) {
  test(`dockerMounts: ${name}`, () => expect(mapped(mounts, daemon)).toEqual(want));
}

const ids = [{ hostID: 65536, containerID: 0, length: 65536 }];
const refused: { name: string; mount: Partial<Mount>; daemon?: Partial<DaemonInfo>; want: RegExp }[] = [
  {
    name: "an image",
    mount: { image: { image: "a", userSpecifiedImage: "a", runtimeHandler: "", annotations: {} } },
    want: /mount at \/data: image volumes need a CRI runtime/,
  },
  {
    name: "mapped IDs",
    mount: { uidMappings: ids, gidMappings: ids },
    want: /mount at \/data: Docker has no ID-mapped mounts/,
  },
  {
    name: "recursive read-only with an old daemon",
    mount: { readonly: true, recursiveReadOnly: true },
    want: /need Docker Engine 25 or later; this is 20\.10\.24/,
  },
  {
    name: "a colon in a path that is to be relabelled",
    mount: { hostPath: "/srv/a:b", selinuxRelabel: true },
    daemon: selinux,
    want: /cannot relabel a mount for SELinux with a colon in its path: \/srv\/a:b/,
  },
  {
    name: "relabelled and recursively read-only",
    mount: { readonly: true, recursiveReadOnly: true, selinuxRelabel: true },
    daemon: { ...selinux, ...engine28 },
    want: /cannot relabel a volume for SELinux and mount it recursively read-only/,
  },
];
for (const { name, mount: one, daemon = {}, want } of refused) {
  test(`dockerMounts refuses ${name}`, () => {
    expect(() => mapped([one], daemon)).toThrow(want);
    expect(() => mapped([one], daemon)).toThrow(/^container app in pod shop\/web: /);
  });
}

test("recursive read-only mounts are promised where daemon, runtime and kernel have them", () => {
  const has = (handler: string, kernel: string, daemon: Partial<DaemonInfo> = engine28) =>
    hasRecursiveReadOnly(handler, daemonInfo({ runtimes: ["kata", "runc"], ...daemon }), kernel);
  expect([has("", "6.1.0-18-amd64"), has("runc", "5.12.0")]).toEqual([true, true]);
  expect([has("", "5.11.22"), has("kata", "6.1.0"), has("", "6.1.0", {}), has("", "odd")]).toEqual([
    false,
    false,
    false,
    false,
  ]);
  expect(has("", "6.1.0", { ...engine28, defaultRuntime: "kata" })).toBe(false);
});

test("a directory is made for a path that does not exist; what is there stays as it is", async () => {
  const dir = await mkdtemp(join(tmpdir(), "nodelet-mounts-"));
  onTestFinished(async () => await rm(dir, { recursive: true, force: true }));
  const file = join(dir, "file");
  await writeFile(file, "text");
  await mkdir(join(dir, "there"), { mode: 0o700 });
  const paths = [file, join(dir, "there"), join(dir, "new/deep")];
  await makeMissingSources(
    what,
    paths.map((hostPath) => mount({ hostPath })),
  );
  const found = await Promise.all(paths.map(async (path) => await stat(path)));
  expect(found.map((entry) => entry.isDirectory())).toEqual([false, true, true]);
  expect((found[1]?.mode ?? 0) & 0o777).toBe(0o700);
});

test("a path that cannot be made is named", async () => {
  const dir = await mkdtemp(join(tmpdir(), "nodelet-mounts-"));
  onTestFinished(async () => await rm(dir, { recursive: true, force: true }));
  await symlink(join(dir, "nowhere"), join(dir, "dangling"));
  await writeFile(join(dir, "file"), "");
  const make = async (hostPath: string) => await makeMissingSources(what, [mount({ hostPath })]);
  await expect(make(join(dir, "dangling"))).rejects.toThrow(
    /^container app in pod shop\/web: path on the node does not exist and cannot be made: .*dangling/,
  );
  await expect(make(join(dir, "file/below"))).rejects.toThrow(
    /^container app in pod shop\/web: path on the node does not exist and cannot be made: .*file\/below/,
  );
});

test("a path that may not be looked at is named", async () => {
  const dir = await mkdtemp(join(tmpdir(), "nodelet-mounts-"));
  onTestFinished(async () => await rm(dir, { recursive: true, force: true }));
  const loop = join(dir, "loop");
  await symlink(loop, loop);
  const error = { code: "Invalid", message: expect.stringContaining(`path on the node ${loop}: `) as unknown };
  await expect(makeMissingSources(what, [mount({ hostPath: loop })])).rejects.toMatchObject(error);
});
