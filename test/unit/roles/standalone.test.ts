import { describe, expect, test } from "vitest";
import { absentApi, emptyStore } from "../../../agent/kube/absent.ts";
import { pods } from "../../../agent/kube/resources.ts";
import type { Pod } from "../../../agent/kube/types.ts";
import { checkStandalone } from "../../../agent/roles/standalone.ts";
import { kubeletWith, problemsOf, runCommand } from "../config/support.ts";

describe("a node without kubeconfig", () => {
  const alone =
    "authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}\nauthorization: {mode: AlwaysAllow}\n";

  test("may have no configuration file at all, as the reference", () => {
    expect(problemsOf(() => checkStandalone(runCommand(["--cgroup-root=/"]).kubelet))).toEqual([]);
  });

  const cases: [what: string, fields: string, args: string[], lines: string[]][] = [
    ["everything said", alone, [], []],
    ["no server, so nobody to ask about", "enableServer: false\n", [], []],
    [
      "the defaults of a file",
      "",
      [],
      [
        "authentication.webhook.enabled must be false: without --kubeconfig there is no API server to ask about tokens",
        "authorization.mode must be AlwaysAllow: without --kubeconfig there is no API server to ask who may do what",
      ],
    ],
    [
      "a certificate to be signed",
      `${alone}serverTLSBootstrap: true\n`,
      [],
      ["serverTLSBootstrap must be false: without --kubeconfig there is no API server to sign the certificate"],
    ],
    [
      "a kubeconfig to be written nowhere",
      alone,
      ["--bootstrap-kubeconfig=/b"],
      ["--bootstrap-kubeconfig needs --kubeconfig, which it is to write"],
    ],
  ];
  test.each(cases)("%s", (_what, fields, args, lines) => {
    expect(problemsOf(() => checkStandalone(kubeletWith(fields, args).kubelet))).toEqual(lines);
  });

  test("has an API that refuses by name, and stores that are complete and empty", async () => {
    await expect(absentApi.get(pods, { name: "a" })).rejects.toMatchObject({
      code: "Unimplemented",
      message: "nodelet runs without an API server",
    });
    const store = emptyStore<Pod>();
    await store.synced();
    expect([store.hasSynced, store.size, [...store.list()], store.get("a")]).toEqual([true, 0, [], undefined]);
  });
});
