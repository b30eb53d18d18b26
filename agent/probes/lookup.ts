import type { LookupAddress } from "node:dns";
import { lookup as lookupOnce } from "node:dns/promises";
import type { LookupFunction } from "node:net";

const underWay = new Map<string, Promise<LookupAddress[]>>();

/**
 * Looks up a host name as the machine does, once at a time for each name. A look-up cannot be cancelled and may take far
 * longer than the probe that asked for it: without this, they would pile up while the name server is away.
 */
export const lookup: LookupFunction = (hostname, { all = false }, callback) => {
  addressesOf(hostname).then(
    (addresses) => {
      const [{ address, family } = { address: "", family: 0 }] = addresses;
      if (all) callback(null, addresses);
      else callback(null, address, family);
    },
    (err: unknown) => callback(err as NodeJS.ErrnoException, ""),
  );
};

async function addressesOf(hostname: string): Promise<LookupAddress[]> {
  let addresses = underWay.get(hostname);
  if (addresses === undefined) {
    addresses = lookupOnce(hostname, { all: true }).finally(() => underWay.delete(hostname));
    underWay.set(hostname, addresses);
  }
  return await addresses;
}
