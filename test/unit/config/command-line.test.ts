import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { kubeletStart, unsupportedFieldsMarkdown } from "../../../agent/config/help.ts";
import { systemHost } from "../../../agent/config/host.ts";
import { kubeletSections } from "../../../agent/config/kubelet-config.ts";
import { parseCommandLine } from "../../../agent/config/load.ts";
import { logLevelOf } from "../../../agent/config/verbosity.ts";
import { kubeletVersion, nodeletVersion, versionText } from "../../../agent/version.ts";
import { fakeHost } from "./support.ts";

function helpOf(...args: string[]): string {
  const command = parseCommandLine(args, fakeHost());
  if (command.kind !== "help") throw new Error(command.kind);
  return command.text;
}

describe("help", () => {
  test("of the agent", async () => {
    await expect(helpOf("--help")).toMatchFileSnapshot("golden/help.txt");
    expect(helpOf("-h")).toBe(helpOf("--help"));
  });

  test("of the proxy", async () => {
    await expect(helpOf("proxy", "--help")).toMatchFileSnapshot("golden/help-proxy.txt");
  });

  test("fits a terminal", () => {
    for (const line of [helpOf("-h"), helpOf("proxy", "-h")].join("\n").split("\n")) {
      expect(line.length).toBeLessThanOrEqual(100);
    }
  });

  test("is given whatever else is on the line", () => {
    expect(helpOf("--config=/missing", "--help")).toBe(helpOf("--help"));
  });
});

describe("version", () => {
  test("--version, --version=true and raw", () => {
    expect(parseCommandLine(["--version"], fakeHost())).toEqual({ kind: "version", raw: false });
    expect(parseCommandLine(["--version=raw"], fakeHost())).toEqual({ kind: "version", raw: true });
    expect(parseCommandLine(["proxy", "--version"], fakeHost())).toEqual({ kind: "version", raw: false });
    expect(parseCommandLine(["--version=false"], fakeHost()).kind).toBe("run");
  });

  test("standard output is what kubeadm parses, and nothing else", () => {
    const { stdout, stderr } = versionText(false);
    expect(stdout).toMatch(/^\s*Kubernetes v(\d+\.\d+\.\d+[-0-9a-zA-Z_.+]*)\s*$/);
    expect(stderr).toContain(nodeletVersion);
    expect(JSON.parse(versionText(true).stdout)).toMatchObject({ major: "1", minor: "36", gitVersion: kubeletVersion });
  });

  test("is the package's", () => {
    const text = readFileSync(new URL("../../../package.json", import.meta.url), "utf8");
    expect(JSON.parse(text)).toMatchObject({ version: nodeletVersion });
  });
});

test("verbosity becomes a log level", () => {
  expect([0, 2, 3, 4, 5, 6, 10].map(logLevelOf)).toEqual(["info", "info", "info", "debug", "debug", "trace", "trace"]);
});

test("the list of what is not there yet names fields with their purpose", () => {
  const text = unsupportedFieldsMarkdown([kubeletStart, ...kubeletSections]);
  expect(text).toContain("- `--lock-file`: file to hold a lock on while running");
  expect(text).toContain("- `volumePluginDir`: directory of flexvolume plugins");
  expect(text).toContain("- `evictionHard`: ");
  expect(text).not.toContain("`maxPods`");
});

test("the real machine answers", () => {
  expect(typeof systemHost.isCgroupV2()).toBe("boolean");
  expect(systemHost.onlineCPUs()?.has(0)).toBe(true);
  expect(
    systemHost.filesBelow(new URL("fixtures", import.meta.url).pathname).map((path) => path.split("/").at(-1)),
  ).toEqual(["kind-kube-proxy.yaml", "kind-kubelet.yaml", "kubeadm-kube-proxy.yaml", "kubeadm-kubelet.yaml"]);
});
