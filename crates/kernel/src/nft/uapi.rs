//! Numbers of `linux/netfilter/nf_tables.h` and `linux/netfilter/nfnetlink.h`.

/// Address families, `NFPROTO_*` of `linux/netfilter.h`.
pub(super) mod family {
    pub(crate) const INET: u8 = 1;
    pub(crate) const IPV4: u8 = 2;
    pub(crate) const IPV6: u8 = 10;
}

/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message's type.
const SUBSYSTEM: u16 = 10;

/// Message types.
pub(super) mod message {
    use super::SUBSYSTEM;

    pub(crate) const BATCH_BEGIN: u16 = 0x10;
    pub(crate) const BATCH_END: u16 = 0x11;
    pub(crate) const NEW_TABLE: u16 = SUBSYSTEM << 8;
    pub(crate) const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
    pub(crate) const DEL_TABLE: u16 = SUBSYSTEM << 8 | 2;
    pub(crate) const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
    pub(crate) const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
    pub(crate) const DEL_CHAIN: u16 = SUBSYSTEM << 8 | 5;
    pub(crate) const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
    pub(crate) const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
    pub(crate) const DEL_RULE: u16 = SUBSYSTEM << 8 | 8;
    pub(crate) const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
    pub(crate) const GET_SET: u16 = SUBSYSTEM << 8 | 10;
    pub(crate) const DEL_SET: u16 = SUBSYSTEM << 8 | 11;
    pub(crate) const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
    pub(crate) const GET_ELEMENTS: u16 = SUBSYSTEM << 8 | 13;
    pub(crate) const DEL_ELEMENTS: u16 = SUBSYSTEM << 8 | 14;
    pub(crate) const NEW_OBJECT: u16 = SUBSYSTEM << 8 | 18;
    pub(crate) const GET_OBJECT: u16 = SUBSYSTEM << 8 | 19;
    pub(crate) const DEL_OBJECT: u16 = SUBSYSTEM << 8 | 20;
}

/// What is told of a transaction: `NFT_MSG_NEWGEN`, `NFT_MSG_GETGEN` and `NFTA_GEN_*`.
pub(crate) mod generation {
    use super::SUBSYSTEM;

    pub(crate) const NEW: u16 = SUBSYSTEM << 8 | 15;
    pub(crate) const GET: u16 = SUBSYSTEM << 8 | 16;
    /// Length of `struct nfgenmsg`.
    pub(crate) const HEADER: usize = 4;
    pub(crate) const ID: u16 = 1;
    /// The thread that committed. Since Linux 4.4.
    pub(crate) const PID: u16 = 2;
    pub(crate) const COMMAND: u16 = 3;
}

/// `NFTA_TABLE_*`.
pub(super) mod table {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const FLAGS: u16 = 2;
    pub(crate) const HANDLE: u16 = 4;
    /// `NFTA_TABLE_OWNER`: the netlink port of the program that keeps the table for itself. Since Linux 5.12.
    pub(crate) const OWNER: u16 = 7;
    /// `NFT_TABLE_F_DORMANT`: the chains are not attached.
    pub(crate) const DORMANT: u32 = 1;
    /// `NFT_TABLE_F_OWNER`: it goes with the socket that made it. Since Linux 5.12.
    pub(crate) const OWNED: u32 = 2;
}

/// `NFT_MSG_TRACE`, the group `NFNLGRP_NFTRACE` of `linux/netfilter/nfnetlink.h` as a bit, `NFTA_TRACE_*` and `enum nft_trace_types`.
pub(super) mod trace {
    use super::SUBSYSTEM;

    pub(crate) const MESSAGE: u16 = SUBSYSTEM << 8 | 17;
    pub(crate) const GROUP: u32 = 1 << (9 - 1);
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const CHAIN: u16 = 2;
    pub(crate) const HANDLE: u16 = 3;
    pub(crate) const TYPE: u16 = 4;
    pub(crate) const VERDICT: u16 = 5;
    pub(crate) const ID: u16 = 6;
    pub(crate) const NETWORK_HEADER: u16 = 8;
    pub(crate) const TRANSPORT_HEADER: u16 = 9;
    pub(crate) const IN_INTERFACE: u16 = 10;
    pub(crate) const OUT_INTERFACE: u16 = 12;
    pub(crate) const MARK: u16 = 14;
    pub(crate) const POLICY: u16 = 16;
    pub(crate) const OF_POLICY: u32 = 1;
    pub(crate) const OF_END: u32 = 2;
    pub(crate) const OF_RULE: u32 = 3;
}

/// `NFTA_CHAIN_*` and `NFTA_HOOK_*`.
pub(super) mod chain {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const HANDLE: u16 = 2;
    pub(crate) const NAME: u16 = 3;
    pub(crate) const HOOK: u16 = 4;
    pub(crate) const POLICY: u16 = 5;
    pub(crate) const TYPE: u16 = 7;
    pub(crate) const HOOK_NUMBER: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;
    /// `NF_ACCEPT`.
    pub(crate) const POLICY_ACCEPT: u32 = 1;
}

/// `NFTA_RULE_*`.
pub(super) mod rule {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const CHAIN: u16 = 2;
    pub(crate) const HANDLE: u16 = 3;
    pub(crate) const EXPRESSIONS: u16 = 4;
    pub(crate) const COMPAT: u16 = 5;
    pub(crate) const USERDATA: u16 = 7;
    /// `NFTNL_UDATA_RULE_COMMENT` of libnftnl.
    pub(crate) const USERDATA_COMMENT: u8 = 0;
}

/// `NFTA_SET_*`.
pub(super) mod set {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const KEY_TYPE: u16 = 4;
    pub(crate) const KEY_LEN: u16 = 5;
    pub(crate) const DATA_TYPE: u16 = 6;
    pub(crate) const DESC: u16 = 9;
    pub(crate) const DESC_SIZE: u16 = 1;
    pub(crate) const ID: u16 = 10;
    pub(crate) const USERDATA: u16 = 13;

    pub(crate) const ANONYMOUS: u32 = 1;
    pub(crate) const CONSTANT: u32 = 2;
    pub(crate) const INTERVAL: u32 = 4;
    pub(crate) const MAP: u32 = 8;

    /// `NFT_DATA_VERDICT`, the type of a verdict map's values.
    pub(crate) const VERDICTS: u32 = 0xffff_ff00;

    /// How the kernel is asked to number an anonymous set.
    pub(crate) const ANONYMOUS_NAME: &str = "__set%d";

    /// Datatypes of the nft program (`enum datatypes`, its `include/datatype.h`); the kernel only stores them.
    pub(crate) const TYPE_IPV4: u32 = 7;
    pub(crate) const TYPE_IPV6: u32 = 8;
    pub(crate) const TYPE_PROTOCOL: u32 = 12;
    pub(crate) const TYPE_PORT: u32 = 13;
    pub(crate) const TYPE_INTERFACE: u32 = 41;

    /// `NFTNL_UDATA_SET_COMMENT` of libnftnl.
    pub(crate) const USERDATA_COMMENT: u8 = 7;

    /// Says that keys are in network order: `NFTNL_UDATA_SET_KEYBYTEORDER`, four bytes, `BYTEORDER_BIG_ENDIAN`. A hint of nft to
    /// itself, in its machine's order.
    pub(crate) const BIG_ENDIAN_KEYS: [u8; 6] = byte_order(2);
    /// The machine's own, `BYTEORDER_HOST_ENDIAN`: names.
    pub(crate) const NATIVE_KEYS: [u8; 6] = byte_order(1);

    const fn byte_order(order: u32) -> [u8; 6] {
        let [a, b, c, d] = order.to_ne_bytes();
        [0, 4, a, b, c, d]
    }
}

/// `NFTA_SET_ELEM_*`, `NFTA_SET_ELEM_LIST_*`, `NFTA_LIST_*`.
pub(super) mod element {
    pub(crate) const LIST_TABLE: u16 = 1;
    pub(crate) const LIST_SET: u16 = 2;
    pub(crate) const LIST_ELEMENTS: u16 = 3;
    pub(crate) const LIST_SET_ID: u16 = 4;
    /// `NFTA_LIST_ELEM`.
    pub(crate) const ITEM: u16 = 1;
    pub(crate) const KEY: u16 = 1;
    pub(crate) const DATA: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const USERDATA: u16 = 6;
    /// `NFTNL_UDATA_SET_ELEM_COMMENT` of libnftnl.
    pub(crate) const USERDATA_COMMENT: u8 = 0;
    /// `NFT_SET_ELEM_INTERVAL_END`.
    pub(crate) const INTERVAL_END: u32 = 1;
    /// nft's own mark on the start of an interval that goes up to the last address: `NFTNL_UDATA_SET_ELEM_FLAGS`, four bytes,
    /// `NFTNL_SET_ELEM_F_INTERVAL_OPEN`.
    pub(crate) const OPEN_INTERVAL: [u8; 6] = {
        let [a, b, c, d] = 1u32.to_ne_bytes();
        [1, 4, a, b, c, d]
    };
}

/// `NFTA_OBJ_*` and `NFT_OBJECT_*`.
pub(super) mod object {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 2;
    pub(crate) const TYPE: u16 = 3;
    pub(crate) const DATA: u16 = 4;
    pub(crate) const COUNTER: u32 = 1;
}

/// `NFT_REJECT_*` and, for both families, `NFT_REJECT_ICMPX_*`.
pub(super) mod reject {
    pub(crate) const TCP_RESET: u32 = 1;
    pub(crate) const ICMPX: u32 = 2;
    pub(crate) const PORT: u8 = 1;
    pub(crate) const ADMIN: u8 = 3;
}

/// `NFTA_EXPR_*`, `NFTA_DATA_*`, `NFTA_VERDICT_*`.
pub(super) mod expr {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DATA: u16 = 2;
    /// `NFTA_LIST_ELEM`.
    pub(crate) const ITEM: u16 = 1;
    pub(crate) const DATA_VALUE: u16 = 1;
    pub(crate) const DATA_VERDICT: u16 = 2;
    pub(crate) const VERDICT_CODE: u16 = 1;
    pub(crate) const VERDICT_CHAIN: u16 = 2;

    /// `NFT_REG_1`, the only register that a rule of ours needs.
    pub(crate) const REGISTER: u32 = 1;
}

/// `NFT_META_*`.
pub(super) mod meta {
    pub(crate) const MARK: u32 = 3;
    pub(crate) const IIF: u32 = 4;
    pub(crate) const IIFNAME: u32 = 6;
    pub(crate) const OIFNAME: u32 = 7;
    pub(crate) const SKUID: u32 = 10;
    pub(crate) const SKGID: u32 = 11;
    /// `NFT_META_NFTRACE`, one byte.
    pub(crate) const TRACED: u32 = 12;
    pub(crate) const NFPROTO: u32 = 15;
    pub(crate) const L4PROTO: u32 = 16;
}

/// `NFT_CT_*` and the bits of a state.
pub(super) mod ct {
    pub(crate) const STATE: u32 = 0;
    pub(crate) const DIRECTION: u32 = 1;
    pub(crate) const MARK: u32 = 3;
    pub(crate) const PORT_DESTINATION: u32 = 12;
    pub(crate) const ZONE: u32 = 17;
    /// `NFT_CT_DST_IP` and `NFT_CT_DST_IP6`.
    pub(crate) const DESTINATION_V4: u32 = 20;
    pub(crate) const DESTINATION_V6: u32 = 22;
    /// `NF_CT_STATE_INVALID_BIT`.
    pub(crate) const INVALID: u32 = 1;
    /// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`.
    pub(crate) const ESTABLISHED: u32 = 2;
    /// `NF_CT_STATE_BIT(IP_CT_RELATED)`.
    pub(crate) const RELATED: u32 = 4;
}

/// `NFTA_FIB_*`, `NFT_FIB_RESULT_*`, the bits `NFTA_FIB_F_*`, and of the answers `RTN_LOCAL` of `linux/rtnetlink.h`.
pub(super) mod fib {
    pub(crate) const REGISTER: u16 = 1;
    pub(crate) const RESULT: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const ADDRESS_TYPE: u32 = 3;
    pub(crate) const SOURCE: u32 = 1;
    pub(crate) const DESTINATION: u32 = 2;
    pub(crate) const IN_INTERFACE: u32 = 8;
    pub(crate) const LOCAL: u32 = 2;
}

/// `NFT_CMP_*`.
pub(super) mod cmp {
    pub(crate) const EQ: u32 = 0;
    pub(crate) const NEQ: u32 = 1;
    pub(crate) const LTE: u32 = 3;
    pub(crate) const GTE: u32 = 5;
}

/// `NFT_PAYLOAD_*` bases.
pub(super) mod payload {
    pub(crate) const NETWORK: u32 = 1;
    pub(crate) const TRANSPORT: u32 = 2;
}

/// Verdicts: `NF_*` of `linux/netfilter.h` and `enum nft_verdicts`.
pub(super) mod verdict {
    pub(crate) const DROP: i32 = 0;
    pub(crate) const ACCEPT: i32 = 1;
    pub(crate) const CONTINUE: i32 = -1;
    pub(crate) const JUMP: i32 = -3;
    pub(crate) const GOTO: i32 = -4;
    pub(crate) const RETURN: i32 = -5;
}

/// `NFT_NAT_SNAT`.
pub(super) const SNAT: u32 = 0;
/// `NF_NAT_RANGE_MAP_IPS` of `linux/netfilter/nf_nat.h`.
pub(super) const ADDRESS_GIVEN: u32 = 1;
/// `NF_NAT_RANGE_PROTO_SPECIFIED` of `linux/netfilter/nf_nat.h`.
pub(super) const PORT_GIVEN: u32 = 2;
/// `IP_CT_DIR_ORIGINAL` and `IP_CT_DIR_REPLY`.
pub(super) const ORIGINAL: u8 = 0;
pub(super) const REPLY: u8 = 1;
/// `NFT_LOOKUP_F_INV`.
pub(super) const LOOKUP_INVERTED: u32 = 1;
/// `struct nfgenmsg`: family, version 0, and an id that is the subsystem in the marks of a batch.
pub(super) fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}
/// The header of a batch's begin and end.
pub(super) fn batch_header() -> [u8; 4] {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    [0, 0, high, low]
}
