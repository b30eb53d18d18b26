import { readFileSync } from "node:fs";
import type { ConfigHost } from "../../../agent/config/host.ts";
import { type Command, parseCommandLine } from "../../../agent/config/load.ts";
import { ConfigError } from "../../../agent/config/problems.ts";

export interface FakeHost {
  files?: Record<string, string>;
  cgroupV2?: boolean;
}

/** A machine with these files, cgroup v2 and CPUs 0-3. */
export function fakeHost({ files = {}, cgroupV2 = true }: FakeHost = {}): ConfigHost {
  return {
    readFile: (path) => {
      const text = files[path];
      if (text === undefined) throw new Error(`ENOENT: no such file or directory, open '${path}'`);
      return text;
    },
    filesBelow: (dir) => {
      const paths = Object.keys(files).filter((path) => path.startsWith(`${dir}/`));
      if (paths.length === 0) throw new Error(`ENOENT: no such file or directory, scandir '${dir}'`);
      return paths.sort();
    },
    isCgroupV2: () => cgroupV2,
    onlineCPUs: () => new Set([0, 1, 2, 3]),
  };
}

export const kubeletHead = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
export const proxyHead = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

export function fixture(name: string): string {
  return readFileSync(new URL(`fixtures/${name}`, import.meta.url), "utf8");
}

export function runCommand(args: string[], host: FakeHost = {}): Extract<Command, { kind: "run" }> {
  const command = parseCommandLine(args, fakeHost(host));
  if (command.kind !== "run") throw new Error(`unexpected command ${command.kind}`);
  return command;
}

export function proxyCommand(args: string[], host: FakeHost = {}): Extract<Command, { kind: "proxy" }> {
  const command = parseCommandLine(["proxy", ...args], fakeHost(host));
  if (command.kind !== "proxy") throw new Error(`unexpected command ${command.kind}`);
  return command;
}

/** A kubelet with a configuration file of these fields. */
export function kubeletWith(fields: string, args: string[] = [], host: Omit<FakeHost, "files"> = {}) {
  return runCommand(["--config", "/etc/k.yaml", ...args], { ...host, files: { "/etc/k.yaml": kubeletHead + fields } });
}

/** A proxy with a configuration file of these fields. */
export function proxyWith(fields: string, args: string[] = []) {
  return proxyCommand(["--config", "/etc/p.yaml", ...args], { files: { "/etc/p.yaml": proxyHead + fields } });
}

/** The lines that a call refuses with; [] if it does not. */
export function problemsOf(call: () => unknown): readonly string[] {
  try {
    call();
    return [];
  } catch (err) {
    if (err instanceof ConfigError) return err.lines;
    throw err;
  }
}
