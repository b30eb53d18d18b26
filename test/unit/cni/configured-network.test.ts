import { expect, test } from "vitest";
import { silentLogger } from "../../../agent/lib/log.ts";
import { parseNetworkConfig } from "../../../cni/config.ts";
import type { ConfigDir } from "../../../cni/config-dir.ts";
import { ConfiguredNetwork } from "../../../cni/configured-network.ts";
import { Plugins } from "../../../cni/plugins.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";

function dirWith(name: string): ConfigDir {
  const text = JSON.stringify({ cniVersion: "1.0.0", name, plugins: [{ type: "bridge" }] });
  return { config: parseNetworkConfig("10.conflist", text), file: "/d/10.conflist", problems: [] };
}

test("looks one at a time: an older reading never takes the place of a newer one", async () => {
  const reads: PromiseWithResolvers<ConfigDir>[] = [];
  const read = async () => {
    const pending = Promise.withResolvers<ConfigDir>();
    reads.push(pending);
    return await pending.promise;
  };
  const clock = new FakeClock();
  const plugins = new Plugins({ binDirs: [], log: silentLogger, clock });
  const network = new ConfiguredNetwork({ confDir: "/d", plugins, clock, log: silentLogger, read });
  const first = network.config();
  const second = network.config();
  await settle();
  expect(reads).toHaveLength(1);
  reads[0]?.resolve(dirWith("a"));
  expect([(await first)?.name, (await second)?.name]).toEqual(["a", "a"]);
  expect((await network.config())?.name).toBe("a");
  expect(reads).toHaveLength(1);
});

test("a look that fails is no look: the next question asks anew", async () => {
  let failures = 1;
  const read = async () => {
    failures -= 1;
    return failures < 0 ? await Promise.resolve(dirWith("a")) : await Promise.reject(new Error("EIO"));
  };
  const clock = new FakeClock();
  const plugins = new Plugins({ binDirs: [], log: silentLogger, clock });
  const network = new ConfiguredNetwork({ confDir: "/d", plugins, clock, log: silentLogger, read });
  await expect(network.config()).rejects.toThrow("EIO");
  expect((await network.config())?.name).toBe("a");
});
