import { createPrivateKey, X509Certificate } from "node:crypto";
import { chmod, mkdir, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, test } from "vitest";
import { ensureSelfSigned } from "../../../../agent/kube/certificates/self-signed.ts";
import { exec } from "../../../../agent/lib/exec.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { FakeClock } from "../fake-clock.ts";
import { makePair, temporaryDir } from "./support.ts";

const deps = { clock: new FakeClock(), log: silentLogger };
async function own(certDir: string, ips: string[] = []): Promise<{ cert: string; key: string }> {
  const { cert, key } = await ensureSelfSigned({ certDir, hostname: "node-1", ips }, deps);
  return { cert: await readFile(cert, "utf8"), key: await readFile(key, "utf8") };
}

test("is made once, for the node's name and addresses, and verifies by its own file", async () => {
  await using tmp = await temporaryDir();
  const certDir = join(tmp.path, "pki");
  const made = await own(certDir, ["10.0.0.7"]);
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
  expect(await own(certDir, ["10.0.0.8"])).toEqual(made);
});

test.each([
  { name: "the key is gone", harm: (dir: string) => rm(join(dir, "kubelet.key")) },
  { name: "the certificate is gone", harm: (dir: string) => rm(join(dir, "kubelet.crt")) },
])("is made again when $name, as after a kill in the middle", async ({ harm }) => {
  await using tmp = await temporaryDir();
  const before = await own(tmp.path);
  await harm(tmp.path);
  const after = await own(tmp.path);
  expect(after.cert).not.toBe(before.cert);
  expect(new X509Certificate(after.cert).checkPrivateKey(createPrivateKey(after.key))).toBe(true);
});

test.each([
  { name: "the certificate is garbage", harm: (dir: string) => writeFile(join(dir, "kubelet.crt"), "x") },
  {
    name: "the key is another's",
    harm: async (dir: string) => writeFile(join(dir, "kubelet.key"), (await makePair()).key),
  },
])("somebody's half-copied pair is not overwritten: $name", async ({ harm }) => {
  await using tmp = await temporaryDir();
  await own(tmp.path);
  await harm(tmp.path);
  const read = async () =>
    await Promise.all(["kubelet.crt", "kubelet.key"].map((name) => readFile(join(tmp.path, name), "utf8")));
  const before = await read();
  await expect(own(tmp.path)).rejects.toThrow(/kubelet\.crt and .*kubelet\.key cannot be served with.*remove both/);
  expect(await read()).toEqual(before);
});

test("somebody's own pair is served as it is, expired or not, with its chain", async () => {
  await using tmp = await temporaryDir();
  const pair = await makePair({ usage: "server", lifetimeMs: -1_000 });
  await writeFile(join(tmp.path, "kubelet.crt"), Buffer.concat([pair.cert, pair.cert]));
  await writeFile(join(tmp.path, "kubelet.key"), pair.key);
  expect((await own(tmp.path)).cert.match(/BEGIN/g)).toHaveLength(2);
});

test("a directory that cannot be written to is an error that names the file", async () => {
  await using tmp = await temporaryDir();
  await mkdir(join(tmp.path, "pki"));
  await writeFile(join(tmp.path, "file"), "");
  await chmod(join(tmp.path, "file"), 0o444);
  await expect(own(join(tmp.path, "file"))).rejects.toThrow(/file/);
});
