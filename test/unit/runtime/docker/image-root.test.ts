import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { findImageRoot } from "../../../../agent/runtime/docker/image-root.ts";

let dir: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "nodelet-image-root-"));
});
afterEach(async () => await rm(dir, { recursive: true, force: true }));

const ofNode = "/run/containerd/containerd.sock";
const ofDaemon = "/run/docker/containerd/containerd.sock";
const config = `version = 3\nroot = '/srv/containerd' # the large disk\n\n[grpc]\n  root = "/nowhere"\n`;

// Directories are below a directory of the test's own.
const cases: { name: string; address?: string; config?: string; there: string[]; want: string | undefined }[] = [
  { name: "Docker keeps them itself", there: ["/docker/containerd/daemon", "/var/containerd"], want: "/docker" },
  { name: "the node's containerd", address: ofNode, there: ["/var/containerd"], want: "/var/containerd" },
  { name: "by the older path", address: `/var${ofNode}`, there: ["/var/containerd"], want: "/var/containerd" },
  {
    name: "the node's, and what the daemon's own has left behind",
    address: ofNode,
    there: ["/docker/containerd/daemon", "/var/containerd"],
    want: "/var/containerd",
  },
  {
    name: "the node's, with a root of its own",
    address: ofNode,
    config,
    there: ["/var/containerd", "/srv/containerd"],
    want: "/srv/containerd",
  },
  {
    name: "the daemon's own",
    address: ofDaemon,
    there: ["/docker/containerd/daemon", "/var/containerd"],
    want: "/docker/containerd/daemon",
  },
  {
    name: "a daemon that does not say whose",
    address: "",
    there: ["/docker/containerd/daemon"],
    want: "/docker/containerd/daemon",
  },
  { name: "nowhere to be seen", address: ofNode, there: ["/docker/containerd/daemon"], want: undefined },
];

test("images lie where the daemon, or its containerd, keeps them", async () => {
  for (const { name, address, config: text = "", there, want } of cases) {
    const root = await mkdtemp(join(dir, "root-"));
    for (const each of there) {
      await mkdir(join(root, each, "io.containerd.snapshotter.v1.overlayfs"), { recursive: true });
    }
    const configPath = join(root, "config.toml");
    await writeFile(configPath, text.replace("/srv", join(root, "srv")));
    const daemon = {
      rootDir: join(root, "docker"),
      storageDriver: "overlayfs",
      ...(address === undefined ? {} : { containerdStore: { address } }),
    };
    const found = await findImageRoot(daemon, {
      socketPath: ofNode,
      configPath,
      rootDir: join(root, "var/containerd"),
    });
    expect(found, name).toBe(want === undefined ? undefined : join(root, want));
  }
});
