import { chmod, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { silentLogger } from "../../../agent/lib/log.ts";
import { delegatedIDs, type IDRange, parseSubIDs, UserNamespaces } from "../../../agent/pods/user-namespaces.ts";
import { makeTempDir } from "../volumes/support.ts";
import { podOf } from "./support.ts";

const idsPerPod = 65_536;
const podNamed = (uid: string) => podOf({ hostUsers: false }, { uid });

let rootDir: string;
let cleanUp: () => Promise<void>;
beforeEach(async () => {
  ({ dir: rootDir, cleanUp } = await makeTempDir());
});
afterEach(() => cleanUp());

/** What an agent that has just started knows. */
function agent(range: IDRange = { first: idsPerPod, count: 3 * idsPerPod }): UserNamespaces {
  return new UserNamespaces({
    rootDir,
    log: silentLogger,
    idsPerPod,
    readRange: async () => await Promise.resolve(range),
  });
}
const firstOf = async (namespaces: UserNamespaces, uid: string) =>
  (await namespaces.mappings(podNamed(uid))).uids[0]?.hostID;
const fileOf = (uid: string) => join(rootDir, "pods", uid, "userns");
async function leave(uid: string, text: string): Promise<void> {
  await mkdir(join(rootDir, "pods", uid), { recursive: true });
  await writeFile(fileOf(uid), text);
}
const record = (hostId: number, more: object = {}) => {
  const mappings = [{ hostId, containerId: 0, length: idsPerPod, ...more }];
  return JSON.stringify({ uidMappings: mappings, gidMappings: mappings });
};

describe("IDs of pods with a user namespace of their own", () => {
  test("are nobody else's, and stay the same", async () => {
    const namespaces = agent();
    const mapping = { hostID: idsPerPod, containerID: 0, length: idsPerPod };
    expect(await namespaces.mappings(podNamed("a"))).toEqual({ uids: [mapping], gids: [mapping] });
    const [b, c] = await Promise.all([firstOf(namespaces, "b"), firstOf(namespaces, "c")]);
    expect([b, c]).toEqual([2 * idsPerPod, 3 * idsPerPod]);
    expect(await firstOf(namespaces, "a")).toBe(idsPerPod);
  });

  test("run out, and are free again when a pod has ended", async () => {
    const namespaces = agent();
    for (const uid of ["a", "b", "c"]) await firstOf(namespaces, uid);
    await expect(firstOf(namespaces, "d")).rejects.toThrow("no 65536 IDs are left for another user namespace");
    await namespaces.release("b");
    expect(await firstOf(namespaces, "d")).toBe(2 * idsPerPod);
    await namespaces.release("never-had-any");
  });

  test("are kept over a restart of the agent, in the reference's file", async () => {
    const before = agent();
    for (const uid of ["a", "b"]) await firstOf(before, uid);
    expect(JSON.parse(await readFile(fileOf("b"), "utf8"))).toEqual(JSON.parse(record(2 * idsPerPod)));
    await before.release("a");
    const after = agent();
    expect(await firstOf(after, "new")).toBe(idsPerPod);
    expect(await firstOf(after, "b")).toBe(2 * idsPerPod);
  });

  test("that another configuration gave count whole", async () => {
    await leave("wide", record(idsPerPod, { length: 2 * idsPerPod }));
    expect(await firstOf(agent(), "new")).toBe(3 * idsPerPod);
  });

  test.each([
    ["no JSON", "{"],
    ["something else", "[]"],
    ["no mappings", "{}"],
    ["two ranges", JSON.stringify({ uidMappings: [{}, {}], gidMappings: [{}, {}] })],
    ["the node's own root", record(0)],
    ["IDs that there are not", record(2 ** 32 - 1)],
    ["text for a number", record(idsPerPod, { length: "65536" })],
    ["another begin", record(idsPerPod, { containerId: 1 })],
    ["users unlike groups", record(idsPerPod).replace("65536", "131072")],
    ["far too much", record(idsPerPod).padEnd(10_000)],
  ])("of a damaged record, %s, keep that pod from starting and no other", async (_what, text) => {
    await leave("broken", text);
    const namespaces = agent();
    expect(await firstOf(namespaces, "new")).toBe(idsPerPod);
    await expect(firstOf(namespaces, "broken")).rejects.toThrow(`${fileOf("broken")}: `);
  });

  test("are tried again when it could not be told which there are", async () => {
    let isMended = false;
    const namespaces = new UserNamespaces({
      rootDir,
      log: silentLogger,
      idsPerPod,
      readRange: async () => {
        if (!isMended) throw new Error("getsubids is broken");
        return await Promise.resolve({ first: idsPerPod, count: idsPerPod });
      },
    });
    await expect(firstOf(namespaces, "a")).rejects.toThrow("getsubids is broken");
    isMended = true;
    expect(await firstOf(namespaces, "a")).toBe(idsPerPod);
  });
});

describe("which IDs may be given", () => {
  const all = { first: idsPerPod, count: 2 ** 32 - idsPerPod };
  async function ask(passwd: string, script?: string): Promise<IDRange> {
    const [file, command] = [join(rootDir, "passwd"), join(rootDir, "getsubids")];
    await writeFile(file, passwd);
    if (script !== undefined) {
      await writeFile(command, `#!/bin/sh\n${script}\n`);
      await chmod(command, 0o755);
    }
    return await delegatedIDs(idsPerPod, file, command);
  }
  const kubelet = "root:x:0:0::/:/bin/sh\nkubelet:x:999:999::/:/bin/false\n";

  test("all but the node's own, if nothing is delegated", async () => {
    expect(await ask(kubelet)).toEqual(all); // the command is not there
    expect(await ask("root:x:0:0::/:/bin/sh\n", "exit 1")).toEqual(all);
    expect(await delegatedIDs(idsPerPod, join(rootDir, "none"))).toEqual(all);
  });
  test("those of the user kubelet", async () => {
    const range = { first: 131_072, count: 655_360 };
    expect(await ask(kubelet, "echo 0: kubelet 131072 655360")).toEqual(range);
  });
  test("not, if that cannot be told", async () => {
    await expect(ask(kubelet, "echo no such thing >&2; exit 1")).rejects.toThrow(/not known: .*no such thing/);
  });

  test.each([
    ["nothing", "", "exactly one range is needed"],
    ["two ranges", "0: kubelet 65536 65536\n1: kubelet 131072 65536\n", "exactly one range is needed"],
    ["another user's", "0: somebody 65536 65536\n", "exactly one range is needed"],
    ["the node's own", "0: kubelet 0 65536\n", "must begin at"],
    ["a crooked begin", "0: kubelet 100000 65536\n", "must begin at"],
    ["a crooked length", "0: kubelet 65536 65535\n", "must begin at"],
    ["more than there are", "0: kubelet 65536 4294967296\n", "must begin at"],
  ])("not from %s", (_what, text, why) => expect(() => parseSubIDs(text, text, idsPerPod)).toThrow(why));
  test("not if users and groups differ", () => {
    const [users, groups] = ["0: kubelet 65536 65536\n", "0: kubelet 131072 65536\n"];
    expect(() => parseSubIDs(users, groups, idsPerPod)).toThrow("users and groups differ");
  });
});
