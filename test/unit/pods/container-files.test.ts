import { chmod, mkdir, readdir, readFile, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { Container, Pod } from "../../../agent/kube/types.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { hostsMount, terminationLogMount } from "../../../agent/pods/container-files.ts";
import { makePod, makeTempDir } from "../volumes/support.ts";

const pod = makePod({});
const app: Container = { name: "app", terminationMessagePath: "/dev/termination-log" };
const hostname = { hostname: "web", domain: undefined };

let rootDir: string;
let podDir: string;
let cleanUp: () => Promise<void>;

beforeEach(async () => {
  ({ dir: rootDir, cleanUp } = await makeTempDir());
  podDir = join(rootDir, "pods", pod.metadata.uid ?? "");
  await mkdir(podDir, { recursive: true });
});
afterEach(() => cleanUp());

describe("hosts file", () => {
  const mount = (ip: string, of: Pod = pod, container = app) =>
    hostsMount(of, container, { podIPs: ip === "" ? [] : [ip], hostname }, { rootDir, selinuxEnabled: true });

  test("is mounted for writing, to be labelled, readable by everybody", async () => {
    const path = join(podDir, "etc-hosts");
    expect(await mount("10.0.0.5")).toEqual([
      {
        hostPath: path,
        containerPath: "/etc/hosts",
        readonly: false,
        selinuxRelabel: true,
        propagation: "PRIVATE",
        recursiveReadOnly: false,
      },
    ]);
    expect((await stat(path)).mode & 0o777).toBe(0o644);
  });

  test("is written anew for each container, in the file that others have mounted already", async () => {
    await mount("10.0.0.5");
    const path = join(podDir, "etc-hosts");
    const { ino } = await stat(path);
    await writeFile(path, `edited in a container\n${"x".repeat(2_000)}`);
    await chmod(path, 0o600);
    await mount("10.0.0.6");
    const { ino: inoNow, mode } = await stat(path);
    expect({ ino: inoNow, mode: mode & 0o777 }).toEqual({ ino, mode: 0o644 });
    const text = await readFile(path, "utf8");
    expect(text).toMatch(/^# Kubernetes-managed hosts file\.\n/);
    expect(text).toMatch(/\n10\.0\.0\.6\tweb\n$/);
  });

  test("of the host's network begins with the node's own", async () => {
    await mount("", makePod({ hostNetwork: true, hostAliases: [{ ip: "192.0.2.9", hostnames: ["a"] }] }));
    expect(await readFile(join(podDir, "etc-hosts"), "utf8")).toBe(
      `# Kubernetes-managed hosts file (host network).\n${await readFile("/etc/hosts", "utf8")}` +
        "\n# Entries added by HostAliases.\n192.0.2.9\ta\n",
    );
  });

  test("is none without an address, nor where the container mounts its own", async () => {
    const own = { ...app, volumeMounts: [{ name: "v", mountPath: "/etc/hosts" }] };
    expect([...(await mount("")), ...(await mount("10.0.0.5", pod, own))]).toEqual([]);
    expect(await readdir(podDir)).toEqual([]);
  });

  test("is not written through a link", async () => {
    await writeFile(join(rootDir, "victim"), "precious");
    await symlink(join(rootDir, "victim"), join(podDir, "etc-hosts"));
    await expect(mount("10.0.0.5")).rejects.toThrow("ELOOP");
    expect(await readFile(join(rootDir, "victim"), "utf8")).toBe("precious");
  });
});

describe("termination log", () => {
  const mount = (container: Container) =>
    terminationLogMount(pod, container, { rootDir, selinuxEnabled: true }, silentLogger);

  test("is a file of its own for each instance, which everybody may write", async () => {
    const [first] = await mount(app);
    const [second] = await mount(app);
    const dir = join(podDir, "containers", "app");
    expect(first).toMatchObject({ containerPath: "/dev/termination-log", readonly: false, selinuxRelabel: true });
    expect(first?.hostPath).toMatch(new RegExp(`^${dir}/[0-9a-f]{8}$`));
    expect(second?.hostPath).not.toBe(first?.hostPath);
    const { mode, size } = await stat(first?.hostPath ?? "");
    expect({ mode: mode & 0o777, size }).toEqual({ mode: 0o666, size: 0 });
    expect((await stat(dir)).mode & 0o777).toBe(0o750);
  });

  test.each([
    { path: "relative/log", want: "/relative/log" },
    { path: "/a/../b", want: "/b" },
  ])("at $path is mounted at $want", async ({ path, want }) => {
    expect((await mount({ ...app, terminationMessagePath: path }))[0]?.containerPath).toBe(want);
  });

  test("is none without a path, nor where it cannot be made: the container starts all the same", async () => {
    expect(await mount({ ...app, terminationMessagePath: "" })).toEqual([]);
    await writeFile(join(podDir, "containers"), "in the way");
    expect(await mount(app)).toEqual([]);
  });
});
