import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { isThere } from "../../lib/is-there.ts";
import type { DaemonInfo } from "./daemon.ts";

/** Of the containerd that is a service of the node: where things are found unless a test says else. */
export interface NodeContainerd {
  socketPath: string;
  configPath: string;
  rootDir: string;
}

const nodeContainerd: NodeContainerd = {
  socketPath: "/run/containerd/containerd.sock",
  configPath: "/etc/containerd/config.toml",
  rootDir: "/var/lib/containerd",
};

/**
 * A directory on the filesystem where the daemon keeps images and containers' own files; undefined if containerd keeps them
 * and it cannot be seen where.
 */
export async function findImageRoot(
  { rootDir, storageDriver, containerdStore }: Pick<DaemonInfo, "rootDir" | "storageDriver" | "containerdStore">,
  containerd = nodeContainerd,
): Promise<string | undefined> {
  if (containerdStore === undefined) return rootDir;
  const { address } = containerdStore;
  const ofNode = await configuredRoot(containerd);
  // That of a containerd that the daemon starts itself.
  const ofDaemon = join(rootDir, "containerd/daemon");
  const isOfNode = address.replace(/^\/var\/run\//, "/run/") === containerd.socketPath;
  // An earlier one of either kind may have left its directories behind.
  const candidates = isOfNode ? [ofNode] : address === "" ? [ofNode, ofDaemon] : [ofDaemon, ofNode];
  for (const candidate of candidates) {
    if (await isThere(join(candidate, `io.containerd.snapshotter.v1.${storageDriver}`))) return candidate;
  }
  return undefined;
}

/** `root` stands before the first table of containerd's configuration, which most nodes do not have at all. */
async function configuredRoot({ configPath, rootDir }: NodeContainerd): Promise<string> {
  const text = await readFile(configPath, "utf8").catch(() => "");
  const [head = ""] = text.split(/^\s*\[/m, 1);
  const [, root = rootDir] = /^\s*root\s*=\s*["']([^"']+)["']/m.exec(head) ?? [];
  return root;
}
