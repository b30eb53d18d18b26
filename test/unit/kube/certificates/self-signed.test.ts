import { chmod, mkdir, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { selfSignedServingCertificate } from "../../../../agent/kube/certificates/self-signed.ts";
import { exec } from "../../../../agent/lib/exec.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import type { ServingCertificate } from "../../../../agent/server/port.ts";
import { FakeClock } from "../fake-clock.ts";
import { makePair, temporaryDir } from "./support.ts";

const deps = { clock: new FakeClock(), log: silentLogger };
const own = (certDir: string, ips: string[] = []): Promise<ServingCertificate> =>
  selfSignedServingCertificate({ certDir, hostname: "node-1", ips }, deps);

test("is made once, for the node's name and addresses, and verifies by its own file", async () => {
  await using tmp = await temporaryDir();
  const certDir = join(tmp.path, "pki");
  const made = (await own(certDir, ["10.0.0.7"])).current();
  expect((await readdir(certDir)).sort()).toEqual(["kubelet.crt", "kubelet.key"]);
  expect((await stat(join(certDir, "kubelet.key"))).mode & 0o777).toBe(0o600);
  expect((await stat(join(certDir, "kubelet.crt"))).mode & 0o777).toBe(0o644);
  const path = join(certDir, "kubelet.crt");
  const at = String(deps.clock.now() / 1_000);
  const args = ["verify", "-x509_strict", "-attime", at, "-purpose", "sslserver", "-CAfile", path];
  for (const name of [
    ["-verify_hostname", "node-1"],
    ["-verify_ip", "10.0.0.7"],
  ]) {
    expect((await exec("openssl", [...args, ...name, path], { timeoutMs: 5_000 })).message).toBe("openssl succeeded");
  }
  const again = (await own(certDir, ["10.0.0.8"])).current();
  expect(again?.cert.toString()).toBe(made?.cert.toString());
  expect(again?.key.toString()).toBe(made?.key.toString());
});

test.each([
  { name: "the key is gone", harm: (dir: string) => rm(join(dir, "kubelet.key")) },
  { name: "the certificate is gone", harm: (dir: string) => rm(join(dir, "kubelet.crt")) },
  { name: "the certificate is garbage", harm: (dir: string) => writeFile(join(dir, "kubelet.crt"), "x") },
  {
    name: "the key is another's",
    harm: async (dir: string) => writeFile(join(dir, "kubelet.key"), (await makePair()).key),
  },
])("is made again when $name, as after a kill in the middle", async ({ harm }) => {
  await using tmp = await temporaryDir();
  const before = (await own(tmp.path)).current();
  await harm(tmp.path);
  const after = (await own(tmp.path)).current();
  expect(after?.cert.toString()).not.toBe(before?.cert.toString());
  expect(await readFile(join(tmp.path, "kubelet.key"), "utf8")).toBe(after?.key.toString());
});

test("somebody's own pair is served as it is, expired or not, with its chain", async () => {
  await using tmp = await temporaryDir();
  const pair = await makePair({ usage: "server", lifetimeMs: -1_000 });
  await writeFile(join(tmp.path, "kubelet.crt"), Buffer.concat([pair.cert, pair.cert]));
  await writeFile(join(tmp.path, "kubelet.key"), pair.key);
  const served = (await own(tmp.path)).current();
  expect(served?.cert.toString().match(/BEGIN/g)).toHaveLength(2);
});

test("a directory that cannot be written to is an error that names the file", async () => {
  await using tmp = await temporaryDir();
  await mkdir(join(tmp.path, "pki"));
  await writeFile(join(tmp.path, "file"), "");
  await chmod(join(tmp.path, "file"), 0o444);
  await expect(own(join(tmp.path, "file"))).rejects.toThrow(/file/);
});
