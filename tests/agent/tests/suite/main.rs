//! The node agent from outside: its life, what it keeps, its sockets, bad surroundings, and the plugin beside it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod backend;
mod behind;
mod cleanup;
mod configuration;
mod crowds;
mod descriptor;
mod failure;
mod floods;
mod joining;
mod keeping;
mod life;
mod logs;
mod mesh;
mod mesh_attack;
mod mesh_check;
mod mesh_drain;
mod mesh_faults;
mod mesh_given_up;
mod mesh_manifests;
mod mesh_off;
mod mesh_options;
mod mesh_records;
mod mesh_render;
mod mesh_slow;
mod mesh_start;
mod mesh_truth;
mod mesh_waiting;
mod neighbours;
mod socket;
mod sources;
mod stuck_log;
mod surroundings;
mod uninstall;
mod upgrade;
mod waiting;
